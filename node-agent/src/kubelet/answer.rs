//! What the answer to Allocate passes to one container about its devices. The kubelet keeps it in its checkpoint, which is the second place where an
//! allocation is known, for the day the device table is lost.

use crate::devices::nics;
use crate::devices::offer::Granted;
use macvtap::device_id::ResourceName;
use macvtap::paths::Paths;
use macvtap::table::LinkIdentity;
use macvtap_proto::deviceplugin::{ContainerAllocateResponse, DeviceSpec};
use std::collections::BTreeMap;

/// What the annotation of the container is called in which the links of its devices are noted, without the resource.
const LOWER_LINKS: &str = "lower-links.";

/// The links of devices by the index that was promised for each.
pub type LowerLinks = BTreeMap<u32, LinkIdentity>;

/// Returns the answer for one container.
pub fn answer(paths: &Paths, resource: &ResourceName, granted: &[Granted]) -> ContainerAllocateResponse {
    let nics = nics::to_text(granted.iter().filter_map(|granted| granted.pci));
    let taps = || granted.iter().filter(|granted| granted.pci.is_none());
    let devices = taps().map(|granted| DeviceSpec {
        container_path: format!("/dev/tap{}", granted.ifindex),
        host_path: paths.device_node(granted.ifindex).display().to_string(),
        permissions: "rw".to_owned(),
    });
    let mut answer = ContainerAllocateResponse { devices: devices.collect(), ..Default::default() };
    if !nics.is_empty() {
        answer.envs.insert(nics::VARIABLE.to_owned(), nics);
    }
    let links: LowerLinks = taps().map(|granted| (granted.ifindex, granted.lower.clone())).collect();
    if !links.is_empty()
        && let Ok(text) = serde_json::to_string(&links)
    {
        // Named after the resource: a container may have devices of several.
        let name = format!("{}/{LOWER_LINKS}{resource}", macvtap_crds::GROUP);
        answer.annotations.insert(name, text);
    }
    answer
}

/// Returns the links that an answer notes; none of an earlier release's.
pub fn lower_links(answer: &ContainerAllocateResponse) -> LowerLinks {
    let prefix = format!("{}/{LOWER_LINKS}", macvtap_crds::GROUP);
    let noted = answer.annotations.iter().filter(|(name, _)| name.starts_with(&prefix));
    noted.filter_map(|(_, text)| serde_json::from_str::<LowerLinks>(text).ok()).flatten().collect()
}

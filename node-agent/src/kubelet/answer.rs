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
    let mut answer = ContainerAllocateResponse::default();
    let (mut links, mut nics) = (LowerLinks::new(), Vec::new());
    for granted in granted {
        match granted {
            Granted::Macvtap { ifindex, lower, .. } => {
                answer.devices.push(DeviceSpec {
                    container_path: format!("/dev/tap{ifindex}"),
                    host_path: paths.device_node(*ifindex).display().to_string(),
                    permissions: "rw".to_owned(),
                });
                links.insert(*ifindex, lower.clone());
            }
            Granted::Nic { address, .. } => nics.push(*address),
        }
    }
    if !nics.is_empty() {
        answer.envs.insert(nics::VARIABLE.to_owned(), nics::to_text(nics.into_iter()));
    }
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

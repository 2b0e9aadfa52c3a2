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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_taps_and_nics_and_the_links_of_taps_are_noted() {
        let lower = LinkIdentity::Name { kind: "bond".into(), name: "dp0".into() };
        let tap = Granted::Macvtap { device: "aMvp3".parse().unwrap(), ifindex: 77, lower: lower.clone() };
        let address = "0000:00:0a.0".parse().unwrap();
        let nic = Granted::Nic { device: "aMvp4".parse().unwrap(), address };
        let paths = Paths::new("/host", "/host");
        let resource = "a".parse().unwrap();
        let answer = |granted: &[Granted]| answer(&paths, &resource, granted);
        let with_tap = answer(std::slice::from_ref(&tap));
        assert_eq!(with_tap.devices[0].container_path, "/dev/tap77");
        assert_eq!(with_tap.devices[0].host_path, paths.device_node(77).display().to_string());
        assert_eq!(with_tap.devices[0].permissions, "rw");
        assert_eq!((lower_links(&with_tap), with_tap.envs.len()), ([(77, lower)].into(), 0));
        let with_nic = answer(std::slice::from_ref(&nic));
        assert_eq!((with_nic.devices.len(), with_nic.annotations.len()), (0, 0));
        assert_eq!(nics::from_answer(&with_nic), [address]);
        let with_both = answer(&[tap, nic]);
        assert_eq!((with_both.devices.len(), with_both.envs.len(), with_both.annotations.len()), (1, 1, 1));
    }

    #[test]
    fn what_other_annotations_say_is_not_of_links() {
        let mut answer = ContainerAllocateResponse::default();
        answer.annotations.insert("example.com/other".into(), r#"{"7":{"kind":"bond","name":"dp0"}}"#.into());
        assert!(lower_links(&answer).is_empty());
    }
}

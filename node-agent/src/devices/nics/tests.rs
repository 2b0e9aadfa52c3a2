use super::*;
use crate::attachments::collector::tests::{pod, recorded as record};
use crate::devices::assignment;
use crate::links::inventory::tests::nic;

/// What the record of a pod says of a NIC that looked like this on the node.
pub(crate) fn recorded(link: &Link) -> Nic {
    Nic {
        pci: link.pci_function().unwrap(),
        identity: assignment::identity(link),
        name: link.name.clone(),
        mac: link.own_mac(),
        mtu: link.mtu,
        up: link.admin_up,
        promiscuous: false,
        all_multicast: false,
        alias: None,
        alt_names: link.altnames.clone(),
        tuning: macvtap::record::Tuning::default(),
        programs: None,
    }
}

/// A NIC that looked like this on the node, and is in pod `default/vm`.
pub(crate) fn in_pod(link: &Link) -> InPod {
    InPod { pod: pod("vm"), nic: recorded(link), hardware: link.hardware.clone() }
}

#[test]
fn a_nic_in_a_pod_looks_as_it_did_on_the_node_but_for_its_index() {
    let mut link = nic(3, "eth1", 0xa);
    (link.mac, link.mtu, link.altnames) = (link.permanent_mac, 9000, vec!["enp0s10".to_owned()]);
    assert_eq!(in_pod(&link).link(9), Link { ifindex: 9, ..link.clone() });
    (link.admin_up, link.carrier) = (false, false);
    assert_eq!(in_pod(&link).link(9), Link { ifindex: 9, ..link });
}

#[test]
fn only_a_record_of_a_nic_in_a_pods_network_says_that_a_nic_is_in_a_pod() {
    let nowhere = Path::new("/nonexistent");
    let mut record = record("nicsMvp0");
    assert_eq!(InPod::of(record.clone(), nowhere), None, "of a macvtap");
    let nic = recorded(&nic(3, "eth1", 0xa));
    record.nic = Some(nic.clone());
    let known = InPod::of(record.clone(), nowhere).unwrap();
    assert_eq!((known.pod, known.nic), (pod("vm"), nic));
    record.holder = Holder::Host;
    assert_eq!(InPod::of(record, nowhere), None, "of a pod that has only the tap");
}

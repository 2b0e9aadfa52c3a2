use super::*;
use crate::attachments::collector::tests::{pod, recorded as record};
use crate::devices::assignment;
use crate::links::inventory::tests::nic;
use crate::pools::selection::tests::pool;
use macvtap::table::{Devices, Resource};

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
    assert_eq!(in_pod(&link).link(9), Link { ifindex: 9, ..link.clone() });
    let unseen = InPod { hardware: Hardware::default(), ..in_pod(&link) };
    assert_eq!(unseen.link(9).hardware.parent, link.hardware.parent, "the record has it");
}

#[test]
fn the_addresses_that_a_container_gets_are_read_again_as_they_are_written() {
    let addresses = ["0000:00:0a.0", "0000:00:0b.0"].map(|address| address.parse().unwrap());
    let text = to_text(addresses.into_iter());
    assert_eq!(text, "0000:00:0a.0,0000:00:0b.0,");
    let envs = [(VARIABLE.to_owned(), text)].into();
    assert_eq!(from_answer(&ContainerAllocateResponse { envs, ..Default::default() }), addresses);
}

#[test]
fn nics_that_are_away_are_in_the_pods_of_their_records() {
    let run = tempfile::tempdir().unwrap();
    let paths = Paths::new(run.path(), run.path());
    let mut table = assignment::empty("boot", false);
    let whole = |address: &str, number| WholeNic {
        address: address.parse().unwrap(),
        number,
        ifindex: 3,
        name: "eth1".into(),
        identity: assignment::nowhere(),
    };
    let devices = Devices::Nics(vec![whole("0000:00:0a.0", 0), whole("0000:00:0b.0", 1)]);
    let entry = pool("nics", &serde_json::json!({"type": "HostDevice"})).table_entry();
    table.resources.insert("nics".parse().unwrap(), Resource { devices, ..entry });
    let nic = Some(recorded(&nic(3, "eth1", 0xa)));
    records::write(&paths, &Attachment { nic, ..record("nicsMvp0") }).unwrap();
    let found = |is_away: bool| {
        let found = in_pods(&paths, &table, |_| is_away);
        found.into_iter().map(|(device, found)| (device.to_string(), found.pod)).collect::<Vec<_>>()
    };
    assert_eq!((found(true), found(false)), (vec![("nicsMvp0".to_owned(), pod("vm"))], vec![]));
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

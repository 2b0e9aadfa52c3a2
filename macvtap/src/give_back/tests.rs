use super::*;
use crate::link::XdpPlace;
use netlink_packet_core::Emitable;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};

/// A NIC as the kernel lists it, with these XDP programs.
fn nic(programs: Vec<LinkXdp>) -> NicLink {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName("ens5".into()), LinkAttribute::Xdp(programs)];
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    NicLink::parse(&bytes).unwrap()
}

fn recorded(found: &NicLink) -> Nic {
    let identity = LinkIdentity::Hardware {
        mac: [0x52, 0x54, 0, 0, 0, 1].try_into().unwrap(),
        parent: "virtio1".into(),
    };
    found.as_nic("0000:00:0a.0".parse().unwrap(), identity).unwrap()
}

#[test]
fn only_programs_that_the_pod_attached_are_detached() {
    let at = |found: &NicLink, nic: &Nic| -> Vec<XdpPlace> {
        foreign_programs(found, nic).filter_map(|change| change.detach).collect()
    };
    let both = nic(vec![LinkXdp::DrvProgId(7), LinkXdp::SkbProgId(8), LinkXdp::HwProgId(9)]);
    let all = [XdpPlace::Driver, XdpPlace::Generic, XdpPlace::Hardware];
    assert_eq!(at(&both, &recorded(&nic(vec![]))), all);
    assert_eq!(at(&both, &recorded(&nic(vec![LinkXdp::DrvProgId(7)]))), all[1..], "the node's own stays");
    assert_eq!(at(&both, &recorded(&both)), []);
    let former = Nic { programs: None, ..recorded(&both) };
    assert_eq!(at(&both, &former), [], "an earlier release did not note what the node had");
}

#[test]
fn a_program_is_detached_where_it_runs() {
    for (place, flag) in [(XdpPlace::Generic, 2), (XdpPlace::Driver, 4), (XdpPlace::Hardware, 8)] {
        let message = link::change(7, Change { detach: Some(place), ..Change::default() });
        let nothing = LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(flag)]);
        assert_eq!(message.attributes, [nothing]);
    }
}

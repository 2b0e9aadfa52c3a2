//! What the agent says of every kind of link.

use crate::support::agent::{links, report};
use crate::support::in_guest;
use crate::support::machine::{bond, ip, ip_may_fail, mac, pci_address};
use serde_json::{Value, json};

/// Whether something can be made on a link, and the reason if not.
fn verdict(links: &[Value], name: &str, way: &str) -> Result<(), String> {
    let verdict = links.iter().find(|link| link["name"] == name).unwrap()[way].clone();
    match verdict["reason"].as_str() {
        None => {
            assert_eq!(verdict, json!({"possible": true}), "{name}");
            Ok(())
        }
        Some(reason) => {
            assert_eq!(verdict["possible"], false, "{name}");
            Err(format!("{reason}: {}", verdict["message"].as_str().unwrap()))
        }
    }
}

fn refused<T: std::fmt::Debug>(reason: &str) -> Result<T, String> {
    Err(reason.to_owned())
}

#[test]
fn a_virtio_nic_has_the_address_vendor_and_driver_of_its_pci_function() {
    if !in_guest() {
        return;
    }
    ip("link set eth2 up");
    ip("link property add dev eth2 altname enp3s0");
    let nic = report("eth2");
    assert_eq!((&nic["kind"], &nic["altNames"]), (&json!("Physical"), &json!(["enp3s0"])));
    assert_eq!(nic["pciAddress"], pci_address(2));
    assert_eq!((&nic["vendor"], &nic["driver"]), (&json!("1af4"), &json!("virtio_net")));
    assert_eq!(nic["mac"], mac(2));
    assert_eq!(nic["speedMbps"], 25_000);
    assert_eq!((&nic["adminUp"], &nic["carrier"]), (&json!(true), &json!(true)));
    // What this NIC does not tell is left out, not invented.
    assert_eq!(nic.get("numaNode"), None);
    let far = report("eth3");
    assert_eq!((&far["numaNode"], far.get("speedMbps")), (&json!(1), None));
    assert_eq!(far["pciAddress"], pci_address(3));
    assert_eq!(far["adminUp"], false);
}

#[test]
fn every_kind_of_link_has_its_name_and_each_port_the_link_to_use_in_its_place() {
    if !in_guest() {
        return;
    }
    bond("bond0", &["eth0", "eth1"]);
    ip("link add link bond0 name bond0.100 type vlan id 100");
    ip("link add br0 type bridge");
    ip("link set eth2 master br0");
    ip("link add team0 type team");
    ip("link set eth3 master team0");
    ip("link add dum0 type dummy");
    ip("link add dum1 type dummy");
    ip("link add link dum1 name ipvl0 type ipvlan mode l2");
    ip("link add vrf0 type vrf table 7");
    ip("link add dum2 type dummy");
    ip("link set dum2 master vrf0");
    ip("link add dum3 type dummy");
    ip("link add link dum3 name pass0 type macvtap mode passthru");
    ip("link add veth0 type veth peer name veth1");

    let links = links();
    let find = |name: &str| links.iter().find(|link| link["name"] == name).unwrap();
    let shared = |name: &str| verdict(&links, name, "shared");
    for (name, expected) in [
        ("eth0", "Physical"),
        ("bond0", "Bond"),
        ("bond0.100", "Vlan"),
        ("br0", "Bridge"),
        ("team0", "Team"),
        ("dum0", "Dummy"),
        ("veth0", "Veth"),
        ("vrf0", "Other"),
        ("ipvl0", "Other"),
        ("pass0", "Other"),
        ("teql0", "Other"),
        ("lo", "Other"),
    ] {
        assert_eq!(find(name)["kind"], expected, "{name}");
    }
    // The one thing that counts: it says yes exactly where the kernel does.
    for name in links.iter().map(|link| link["name"].as_str().unwrap()) {
        let made = ip_may_fail(&format!("link add link {name} name probe0 type macvtap mode bridge"));
        if made.is_ok() {
            ip("link del probe0");
        }
        match shared(name) {
            Ok(()) => assert_eq!(made, Ok(String::new()), "{name}"),
            // On a macvtap the kernel makes one, but on the link below; on a passthru's lower link and on loopback it
            // makes none.
            Err(reason) => assert!(made.is_err() || name == "pass0", "{name}: {reason}"),
        }
    }
    assert_eq!(shared("eth0"), refused("EnslavedTo: eth0 is a port of bond0; use bond0"));
    assert_eq!(shared("eth2"), refused("EnslavedTo: eth2 is a port of br0; use br0"));
    assert_eq!(shared("eth3"), refused("EnslavedTo: eth3 is a port of team0; use team0"));
    assert_eq!(shared("dum1"), refused("HasUpper: ipvlan ipvl0 takes what dum1 receives; remove ipvl0"));
    assert_eq!(shared("dum3"), refused("PassthruInUse: pass0 has dum3 in passthru mode; remove pass0"));
    assert_eq!(shared("ipvl0"), refused("KindNotSupported: no macvtap can be made on ipvlan ipvl0"));
    assert_eq!(shared("teql0"), refused("KindNotSupported: teql0 (no kind) is not an Ethernet link"));
    for usable in ["bond0", "bond0.100", "br0", "team0", "dum0", "dum2", "veth0"] {
        assert_eq!(shared(usable), Ok(()), "{usable}");
    }
    assert_eq!(verdict(&links, "bond0", "whole"), refused("HasUpper: bond0.100 is built on bond0"));
    // A bond's speed is its members' sum or best, and each member keeps the address it was made with.
    assert_eq!((&find("bond0")["speedMbps"], &find("bond0")["mac"]), (&json!(10_000), &json!(mac(0))));
    assert_eq!(find("eth1")["mac"], mac(1));
}

#[test]
fn a_nic_that_the_host_uses_can_be_shared_but_not_given_away() {
    if !in_guest() {
        return;
    }
    for nic in 0..4 {
        ip(&format!("link set eth{nic} up"));
    }
    ip("addr add 192.0.2.2/24 dev eth0");
    ip("route add default via 192.0.2.1 dev eth0");
    ip("addr add 2001:db8::2/64 dev eth1");
    ip("link add link eth2 name eth2.5 type vlan id 5");
    let links_now = links();
    let whole = |name: &str| verdict(&links_now, name, "whole");
    assert_eq!(whole("eth0"), refused("DefaultRoute: a default route of the node uses eth0"));
    assert_eq!(whole("eth1"), refused("HostAddress: the node has an address on eth1"));
    assert_eq!(whole("eth2"), refused("HasUpper: eth2.5 is built on eth2"));
    assert_eq!(whole("eth3"), Ok(()));
    for nic in ["eth0", "eth1", "eth2", "eth3"] {
        assert_eq!(verdict(&links_now, nic, "shared"), Ok(()), "{nic}");
    }
    // A default route over several links is one of each of them.
    ip("route del default");
    ip("addr add 198.51.100.2/24 dev eth3");
    ip("route add default nexthop via 192.0.2.1 dev eth0 nexthop via 198.51.100.1 dev eth3");
    assert_eq!(
        verdict(&links(), "eth3", "whole"),
        refused("DefaultRoute: a default route of the node uses eth3")
    );
}

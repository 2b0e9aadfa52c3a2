//! The links of a node state as the agent's inventory of links.

use macvtap_crds::v1alpha1::MacvtapNodeStateStatus;
use macvtap_crds::v1alpha1::nodestate::NodeLink;
use macvtap_node_agent::links::inventory::Inventory;
use macvtap_node_agent::links::link::{Hardware, Kind, Link, Master};
use std::collections::BTreeSet;

/// Indexes of links that are known only because another one names them.
const OTHERS: u32 = 1 << 20;

/// The inventory of a node, as far as its state contains it. The index of a link is its place in the list, from 1.
pub(super) fn inventory(status: &MacvtapNodeStateStatus) -> Inventory {
    let mut inventory = Inventory::default();
    let (mut routes, mut addressed) = (BTreeSet::new(), BTreeSet::new());
    let (mut away, mut present) = (Vec::new(), Vec::new());
    for (index, reported) in (1..).zip(&status.links) {
        let mut link = link(index, reported);
        match reported.reason.as_deref().unwrap_or_default() {
            "DefaultRoute" => {
                routes.insert(index);
            }
            "HostAddress" => {
                addressed.insert(index);
            }
            "EnslavedTo" => link.master = Some(master(status, reported)),
            "HasUpper" => present.push(upper(index, reported, false)),
            "PassthruInUse" => present.push(upper(index, reported, true)),
            "KernelWithoutMacvtap" => {
                let _ = inventory.set_macvtap(false);
            }
            "InPod" => {
                away.push(link);
                continue;
            }
            _ => {}
        }
        present.push(link);
    }
    let _ = inventory.reset(present);
    let _ = inventory.set_default_routes(routes);
    let _ = inventory.set_addressed(addressed);
    inventory.set_in_pods(away);
    inventory
}

fn link(index: u32, reported: &NodeLink) -> Link {
    let reason = reported.reason.as_deref().unwrap_or_default();
    let mac = reported.mac.as_deref().and_then(|mac| mac.parse().ok());
    Link {
        name: reported.name.clone(),
        altnames: reported.alt_names.clone(),
        kind: kind(reported),
        mac,
        mtu: reported.mtu.unwrap_or_default(),
        admin_up: reason != "AdminDown",
        carrier: reported.carrier,
        // A representor is the only NIC that no macvtap is made on.
        port: reported
            .message
            .as_deref()
            .filter(|message| message.contains("represents port"))
            .map(|_| "pf0vf0".to_owned()),
        hardware: Hardware {
            // Whether a NIC shares its PCI function is not reported; most have one each.
            parent: reported.pci_address.clone(),
            driver: reported.driver.clone(),
            pci_address: reported.pci_address.clone(),
            vendor: reported.vendor.clone(),
            numa_node: reported.numa_node,
            speed_mbps: reported.speed_mbps,
            ..Hardware::default()
        },
        ..Link::blank(index)
    }
}

fn kind(reported: &NodeLink) -> Kind {
    let impossible = reported.reason.as_deref() == Some("KindNotSupported");
    match reported.kind.as_str() {
        "Physical" => Kind::Physical,
        "Bond" => Kind::Bond,
        "Vlan" => Kind::Vlan,
        "Team" => Kind::Team,
        "Bridge" => Kind::Bridge,
        "Veth" => Kind::Veth,
        "Dummy" => Kind::Dummy,
        _ if impossible => Kind::NotEthernet(String::new()),
        _ => Kind::Other(String::new()),
    }
}

/// The link that this one is a port of, by the agent's message `... is a port of NAME; use NAME`.
fn master(status: &MacvtapNodeStateStatus, reported: &NodeLink) -> Master {
    let name =
        reported.message.as_deref().and_then(|message| message.rsplit("; use ").next()).unwrap_or_default();
    let index =
        (1..).zip(&status.links).find(|(_, link)| link.name == name).map_or(OTHERS, |(index, _)| index);
    Master { ifindex: index, kind: "bond".to_owned() }
}

/// The link that is built on this one: the first or, for an ipvlan, second word of the agent's message.
fn upper(index: u32, reported: &NodeLink, passthru: bool) -> Link {
    let message = reported.message.as_deref().unwrap_or_default();
    let (kind, rest) = match message.strip_prefix("ipvlan ") {
        Some(rest) => (Kind::Other("ipvlan".to_owned()), rest),
        None if passthru => (Kind::Macvtap, message),
        None => (Kind::Vlan, message),
    };
    let name = rest.split(' ').next().unwrap_or_default().to_owned();
    Link { name, kind, passthru, lower: Some(index), ..Link::blank(OTHERS + index) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use macvtap_node_agent::links::inventory::{Obstacle, Tie};
    use serde_json::json;

    #[test]
    fn what_a_node_reported_of_its_links_is_what_the_agent_decides_by() {
        let of = |name: &str, reason: &str, message: &str| json!({"name": name, "kind": "Physical", "reason": reason, "message": message, "pciAddress": "0000:01:00.0"});
        let status: MacvtapNodeStateStatus = serde_json::from_value(json!({"links": [
            {"name": "bond0", "kind": "Bond"},
            of("eth0", "EnslavedTo", "eth0 is a port of bond0; use bond0"),
            of("eth1", "DefaultRoute", ""),
            of("eth2", "HasUpper", "eth2.5 is built on eth2"),
            of("eth3", "HasUpper", "ipvlan ipvl0 takes what eth3 receives; remove ipvl0"),
            of("eth4", "PassthruInUse", "mvt has eth4 in passthru mode; remove mvt"),
            of("eth5", "InPod", ""),
        ]}))
        .unwrap();
        let inventory = inventory(&status);
        let link = |index| inventory.get(index).unwrap();
        assert_eq!(inventory.obstacle(link(2)), Some(Obstacle::EnslavedTo("bond0".to_owned())));
        assert_eq!(inventory.tie(link(3)), Some(Tie::DefaultRoute));
        assert_eq!(inventory.tie(link(4)), Some(Tie::Upper("eth2.5".to_owned())));
        assert_eq!(inventory.obstacle(link(5)), Some(Obstacle::IpvlanParent("ipvl0".to_owned())));
        assert_eq!(inventory.obstacle(link(6)), Some(Obstacle::Passthru("mvt".to_owned())));
        assert!(inventory.is_in_pod(7) && inventory.obstacle(link(1)).is_none());
    }
}

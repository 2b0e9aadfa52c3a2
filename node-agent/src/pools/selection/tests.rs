use super::*;
use crate::links::inventory::tests::{link, nic};
use macvtap_crds::v1alpha1::NodePool;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A pool as a node state has it, from the fields that matter to a test.
pub(crate) fn pool(name: &str, fields: &Value) -> Pool {
    let mut json = json!({
        "name": name, "uid": "u", "generation": 1, "phase": "Active", "resourceName": name,
        "links": [{"names": ["*"]}],
    });
    let fields = fields.as_object().unwrap().clone();
    json.as_object_mut().unwrap().extend(fields);
    Pool::compile(serde_json::from_value::<NodePool>(json).unwrap()).unwrap()
}

fn inventory(links: impl IntoIterator<Item = Link>) -> Inventory {
    let mut inventory = Inventory::default();
    let _ = inventory.reset(links);
    inventory
}

fn nics(count: u32) -> Inventory {
    inventory((1..=count).map(|i| link(i, &format!("eth{i}"), Kind::Physical)))
}

fn holding(resource: &str, mode: Mode) -> Holding {
    Holding { resource: resource.parse().unwrap(), mode, pool: None }
}

fn reason(selection: &Selection, ifindex: u32, pool: usize) -> LinkReason {
    let refusals = &selection.links[&ifindex].refusals;
    refusals.iter().find(|(index, _)| *index == pool).unwrap().1.reason
}

#[test]
fn the_first_pool_in_order_gets_a_link_and_the_other_is_told() {
    let pools = [pool("a", &json!({})), pool("b", &json!({}))];
    let selection = select(&pools, &nics(1), &Holdings::new());
    assert_eq!(selection.links[&1].pools, [0]);
    assert_eq!(reason(&selection, 1, 1), LinkReason::LostToPool);
    assert_eq!(selection.pools[1].contested, [1]);
    assert_eq!(selection.pools[0].contenders, [1].into());
}

#[test]
fn whole_nics_are_those_with_a_pci_function_of_their_own_that_the_node_does_not_use() {
    let mut usb = nic(7, "usb0", 7);
    usb.hardware.parent = Some("1-1:1.0".into());
    let mut port = nic(9, "port1", 8);
    port.hardware.parent = Some("virtio9".into());
    let mut vlan = link(11, "eth4.5", Kind::Vlan);
    vlan.lower = Some(4);
    let mut member = nic(12, "eth12", 12);
    member.master = Some(crate::links::link::Master { ifindex: 13, kind: "bond".into() });
    let mut links = inventory([
        nic(1, "eth1", 1),
        nic(2, "eth2", 2),
        nic(3, "eth3", 3),
        nic(4, "eth4", 4),
        link(5, "dp0", Kind::Veth),
        link(6, "eth6", Kind::Physical),
        usb,
        nic(8, "port0", 8),
        port,
        vlan,
        member,
        link(13, "bond0", Kind::Bond),
    ]);
    let _ = links.set_default_routes([2].into()) | links.set_addressed([3].into());
    let selection = select(&[pool("nics", &json!({"type": "HostDevice"}))], &links, &Holdings::new());
    assert_eq!(selection.pools[0].links, [1]);
    for (ifindex, expected) in [
        (2, LinkReason::DefaultRoute),
        (3, LinkReason::HostAddress),
        (4, LinkReason::HasUpper),
        (5, LinkReason::KindNotSupported),
        (6, LinkReason::KindNotSupported),
        (7, LinkReason::KindNotSupported),
        (8, LinkReason::KindNotSupported),
        (9, LinkReason::KindNotSupported),
        (11, LinkReason::KindNotSupported),
        (12, LinkReason::EnslavedTo),
        (13, LinkReason::KindNotSupported),
    ] {
        assert_eq!(reason(&selection, ifindex, 0), expected, "{ifindex}");
    }
    let message = |ifindex| selection.links[&ifindex].refusals[0].1.message.clone();
    assert!(message(6).contains("eth6 has no PCI function of its own"), "{}", message(6));
    assert!(message(8).contains("port1 is of the same PCI function as port0"), "{}", message(8));
}

#[test]
fn a_link_in_use_stays_with_its_pool_whatever_the_order() {
    let pools = [pool("a", &json!({})), pool("b", &json!({}))];
    let held = Holdings::from([(1, vec![holding("b", Mode::Bridge)])]);
    let selection = select(&pools, &nics(2), &held);
    assert_eq!((&selection.links[&1].pools[..], &selection.links[&2].pools[..]), (&[1][..], &[0][..]));
}

#[test]
fn a_link_with_devices_of_a_pool_that_is_gone_waits_for_them() {
    let held = Holdings::from([(1, vec![holding("gone", Mode::Bridge)])]);
    let exclusive = select(&[pool("a", &json!({}))], &nics(1), &held);
    assert_eq!(reason(&exclusive, 1, 0), LinkReason::LostToPool);
    let shared = select(&[pool("a", &json!({"overlap": "Shared"}))], &nics(1), &held);
    assert_eq!(shared.links[&1].pools, [0]);
    let passthru = Holdings::from([(1, vec![holding("gone", Mode::Passthru)])]);
    let shared = select(&[pool("a", &json!({"overlap": "Shared"}))], &nics(1), &passthru);
    assert_eq!(reason(&shared, 1, 0), LinkReason::LostToPool);
}

#[test]
fn pools_that_all_share_have_a_link_together() {
    let share = json!({"overlap": "Shared"});
    let pools = [pool("a", &share), pool("b", &json!({})), pool("c", &share)];
    let selection = select(&pools, &nics(1), &Holdings::new());
    assert_eq!(selection.links[&1].pools, [0, 2]);
    assert_eq!(reason(&selection, 1, 1), LinkReason::LostToPool);
}

#[test]
fn entries_are_alternatives_fields_add_up_and_exclude_wins() {
    let mut fast = link(1, "ens1", Kind::Physical);
    fast.hardware.speed_mbps = Some(25_000);
    fast.altnames = vec!["enp9s0".into()];
    let mut slow = link(2, "ens2", Kind::Physical);
    slow.hardware.speed_mbps = Some(1000);
    let links = [fast, slow, link(3, "bond0", Kind::Bond), link(4, "veth9", Kind::Veth)];
    let inventory = inventory(links);
    let chosen = |fields| select(&[pool("a", &fields)], &inventory, &Holdings::new()).pools[0].links.clone();
    assert_eq!(chosen(json!({"links": [{"minSpeedMbps": 10000}]})), [1]);
    assert_eq!(chosen(json!({"links": [{"names": ["enp?s0"]}, {"kinds": ["Bond"]}]})), [1, 3]);
    assert_eq!(chosen(json!({"links": [{"names": ["ens*"], "minSpeedMbps": 10000}]})), [1]);
    assert_eq!(chosen(json!({"links": [{"names": ["*"]}]})), [1, 2, 3, 4]);
    assert_eq!(chosen(json!({"links": [{"drivers": ["mlx5_core"]}]})), [0; 0]);
    assert_eq!(chosen(json!({"links": [{"names": ["ens*"]}], "exclude": [{"names": ["ens2"]}]})), [1]);
}

#[test]
fn without_kinds_and_names_only_nics_and_bonds_are_meant() {
    let inventory = inventory([
        link(1, "e", Kind::Physical),
        link(2, "b", Kind::Bond),
        link(3, "v", Kind::Vlan),
        link(4, "x", Kind::Veth),
    ]);
    let pools =
        [pool("a", &json!({"links": [{"numaNodes": [0]}, {"minSpeedMbps": 1}, {"kinds": ["Vlan"]}]}))];
    assert_eq!(select(&pools, &inventory, &Holdings::new()).pools[0].links, [3]);
}

#[test]
fn whole_links_are_not_taken_from_the_host() {
    let mut inventory = nics(2);
    let _ = inventory.set_default_routes([1].into());
    let passthru = pool("p", &json!({"macvtap": {"mode": "Passthru"}}));
    let selection = select(&[passthru], &inventory, &Holdings::new());
    assert_eq!(reason(&selection, 1, 0), LinkReason::DefaultRoute);
    assert_eq!(selection.pools[0].links, [2]);
    let bridge = select(&[pool("a", &json!({}))], &inventory, &Holdings::new());
    assert_eq!(bridge.pools[0].links, [1, 2]);
    let careful = select(&[pool("a", &json!({"excludeDefaultRoute": true}))], &inventory, &Holdings::new());
    assert_eq!(reason(&careful, 1, 0), LinkReason::DefaultRoute);
}

#[test]
fn a_resource_for_each_link_is_named_after_it_if_it_can_be() {
    let inventory = inventory([link(1, "eth0", Kind::Physical), link(2, "_x", Kind::Physical)]);
    let pools = [pool("all", &json!({"resourcePer": "Link"}))];
    let selection = select(&pools, &inventory, &Holdings::new());
    assert_eq!(selection.resources.keys().map(ResourceName::as_str).collect::<Vec<_>>(), ["eth0"]);
    assert_eq!(reason(&selection, 2, 0), LinkReason::NameNotUsable);
}

#[test]
fn a_resource_named_after_a_link_in_use_stays_with_the_pool_that_had_it() {
    let pools = [pool("new", &json!({"resourcePer": "Link"})), pool("old", &json!({"resourcePer": "Link"}))];
    let select_with = |holder: Option<&str>| {
        let holding = Holding { pool: holder.map(Into::into), ..holding("eth1", Mode::Bridge) };
        select(&pools, &nics(1), &Holdings::from([(1, vec![holding])]))
    };
    let selection = select_with(Some("old"));
    assert_eq!(selection.links[&1].pools, [1]);
    assert_eq!(reason(&selection, 1, 0), LinkReason::NameNotUsable);
    for holder in [None, Some("gone"), Some("new")] {
        assert_eq!(select_with(holder).links[&1].pools, [0], "{holder:?}");
    }
}

#[test]
fn two_pools_never_have_one_resource_name() {
    let twice = [pool("a", &json!({})), pool("b", &json!({"resourceName": "a"}))];
    let selection = select(&twice, &nics(1), &Holdings::new());
    assert_eq!(selection.pools[1].name_taken_by, Some(0));
    let inventory = inventory([link(1, "a", Kind::Physical)]);
    let pools =
        [pool("l", &json!({"resourcePer": "Link"})), pool("a", &json!({"links": [{"kinds": ["Bond"]}]}))];
    let selection = select(&pools, &inventory, &Holdings::new());
    assert_eq!(reason(&selection, 1, 0), LinkReason::NameNotUsable);
}

#[test]
fn a_dry_run_takes_nothing_and_says_what_it_would_have() {
    let pools = [
        pool("dry", &json!({"advertisement": "DryRun"})),
        pool("b", &json!({"links": [{"names": ["eth1"]}]})),
    ];
    let selection = select(&pools, &nics(2), &Holdings::new());
    assert_eq!(selection.links[&1].pools, [1]);
    assert_eq!((&selection.pools[0].links[..], &selection.pools[0].contested[..]), (&[2][..], &[1][..]));
    assert!(!selection.resources.contains_key(&"dry".parse().unwrap()));
    let shared = |overlap: &str| {
        let pools = [
            pool("dry", &json!({"advertisement": "DryRun", "overlap": overlap})),
            pool("b", &json!({"overlap": "Shared"})),
        ];
        select(&pools, &nics(1), &Holdings::new()).pools[0].links.len()
    };
    assert_eq!((shared("Shared"), shared("Exclusive")), (1, 0));
}

#[test]
fn a_draining_pool_keeps_what_is_in_use_and_takes_no_more() {
    let pools = [pool("a", &json!({"phase": "Draining"})), pool("b", &json!({}))];
    let held = Holdings::from([(1, vec![holding("a", Mode::Bridge)])]);
    let selection = select(&pools, &nics(2), &held);
    assert_eq!((&selection.links[&1].pools[..], &selection.links[&2].pools[..]), (&[0][..], &[1][..]));
    assert_eq!(reason(&selection, 2, 0), LinkReason::Draining);
}

#[test]
fn a_pool_without_links_says_why() {
    let mut port = link(1, "eth1", Kind::Physical);
    port.master = Some(crate::links::link::Master { ifindex: 2, kind: "bridge".into() });
    let inventory = inventory([port, link(2, "br0", Kind::Bridge), link(3, "v0", Kind::Veth)]);
    let pools = [
        pool("named", &json!({"links": [{"names": ["eth1"]}]})),
        pool("absent", &json!({"links": [{"names": ["eth7"]}]})),
        pool("each", &json!({"links": [{"kinds": ["Bond"]}], "resourcePer": "Link"})),
        pool("fine", &json!({"links": [{"names": ["v0"]}]})),
    ];
    let selection = select(&pools, &inventory, &Holdings::new());
    let why = |index| why_empty(&pools, &inventory, &selection, index);
    assert_eq!(why(0).unwrap(), "eth1 is a port of br0; use br0 (EnslavedTo)");
    assert!(why(1).unwrap().starts_with("no link of this node matches; `macvtap-node-agent links`"));
    assert_eq!(why(2).unwrap(), "eth1 is Physical (KindNotSupported); br0 is bridge (KindNotSupported)");
    assert_eq!(why(3), None);
    let many = select(&pools, &nics(20), &Holdings::new());
    let text = why_empty(&pools, &nics(20), &many, 2).unwrap();
    assert!(text.ends_with(&format!("; and {} more", 20 - REASONS_MAX)), "{text}");
    let none = select(&pools, &Inventory::default(), &Holdings::new());
    let why = why_empty(&pools, &Inventory::default(), &none, 1).unwrap();
    assert!(
        why.starts_with("no link of this node matches: it has neither a NIC nor a bond or VLAN;"),
        "{why}"
    );
}

proptest! {
    /// No link is in two pools unless all of them share it, whole links are alone, and every link is accounted for.
    #[test]
    fn links_are_shared_out_without_contradiction(
        shapes in prop::collection::vec((any::<bool>(), any::<bool>(), 0..4_u32), 1..6),
        held in prop::collection::btree_map(1..5_u32, 0..6_usize, 0..4),
    ) {
        let pools: Vec<Pool> = shapes.iter().enumerate().map(|(i, (shared, passthru, only))| {
            let links = if *only == 0 { json!([{"names": ["*"]}]) } else { json!([{"names": [format!("eth{only}")]}]) };
            let overlap = if *shared && !passthru { "Shared" } else { "Exclusive" };
            let mode = if *passthru { "Passthru" } else { "Bridge" };
            pool(&format!("p{i}"), &json!({"links": links, "overlap": overlap, "macvtap": {"mode": mode}}))
        }).collect();
        let held: Holdings =
            held.into_iter().map(|(l, p)| (l, vec![holding(&format!("p{p}"), Mode::Bridge)])).collect();
        let selection = select(&pools, &nics(4), &held);
        for (ifindex, outcome) in &selection.links {
            if outcome.pools.len() > 1 {
                prop_assert!(outcome.pools.iter().all(|p| pools[*p].shares()));
            }
            let matching = pools.iter().filter(|p| p.selects(&link(*ifindex, &format!("eth{ifindex}"), Kind::Physical))).count();
            prop_assert_eq!(outcome.pools.len() + outcome.refusals.len(), matching);
            for holding in held.get(ifindex).into_iter().flatten() {
                let holder = pools.iter().position(|p| p.name == holding.resource.as_str() && p.selects(&link(*ifindex, &format!("eth{ifindex}"), Kind::Physical)));
                if let Some(holder) = holder {
                    prop_assert!(outcome.pools.contains(&holder));
                }
            }
        }
        for claim in selection.resources.values() {
            prop_assert!(claim.links.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}

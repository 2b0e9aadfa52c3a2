//! What the status says about links.

use super::*;
use crate::links::link::{Master, Tag};

fn bridge_pool() -> Pool {
    pool("a", &json!({"links": [{"names": ["dp0"]}], "capacity": {"perLink": 4}}))
}

fn reason_of<'s>(status: &'s MacvtapNodeStateStatus, name: &str) -> (Option<&'s str>, &'s str) {
    let link = status.links.iter().find(|link| link.name == name).unwrap();
    (link.reason.as_deref(), link.message.as_deref().unwrap_or_default())
}

#[test]
fn two_links_of_one_name_are_listed_apart_and_the_present_one_keeps_the_name() {
    let mut scene = Scene::new(vec![pool("a", &json!({"type": "HostDevice"}))], vec![nic(2, "eth1", 0xa)]);
    scene.status();
    let device: DeviceId = "aMvp0".parse().unwrap();
    let taken = scene.engine.world.inventory.get(2).unwrap().clone();
    scene.engine.world.in_pods.insert(device.clone(), in_pod(&taken));
    scene.engine.world.in_use.insert(device);
    let _ = scene.engine.world.inventory.reset([nic(3, "eth1", 0xb)]);
    let status = scene.status();
    let names: Vec<&str> = status.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["0000:00:0a.0", "eth1"]);
    assert_eq!(reason_of(&status, "0000:00:0a.0").0, Some("InPod"));
    assert_eq!(status.links[1].pci_address.as_deref(), Some("0000:00:0b.0"));
    assert_eq!(status.pools[0].links, ["0000:00:0a.0", "eth1"]);
}

#[test]
fn when_there_are_too_many_links_those_with_a_problem_stay() {
    let mut links: Vec<Link> = (1..=200).map(|i| link(i, &format!("e{i:03}"), Kind::Physical)).collect();
    links[199].carrier = false;
    let status = Scene::new(vec![pool("a", &json!({}))], links).status();
    assert_eq!((status.links.len(), status.truncated_links), (LINKS_MAX, 72));
    assert_eq!(reason_of(&status, "e200").0, Some("NoCarrier"));
}

#[test]
fn an_mtu_that_was_lowered_under_pods_is_named_until_they_are_gone() {
    let jumbo = |mtu| Link { mtu, ..veth(2, "dp0") };
    let mut scene = Scene::new(vec![bridge_pool()], vec![jumbo(9000)]);
    scene.status();
    scene.engine.world.in_use.insert("aMvp1".parse().unwrap());
    for mtu in [9000, 1500] {
        let _ = scene.engine.world.inventory.apply(jumbo(mtu));
        assert_eq!(reason_of(&scene.status(), "dp0").0, None, "every pod has {mtu}");
    }
    let _ = scene.engine.world.inventory.apply(jumbo(9000));
    scene.engine.world.in_use.insert("aMvp2".parse().unwrap());
    let status = scene.status();
    let (reason, message) = reason_of(&status, "dp0");
    assert_eq!(reason, Some("MtuLowered"));
    assert!(message.contains("was 1500") && message.contains("is 9000 now"), "{message}");
    assert_eq!(says(&status, 0, ConditionType::Ready), (true, "Serving"));
    scene.engine.world.in_use.remove(&"aMvp1".parse().unwrap());
    assert_eq!(reason_of(&scene.status(), "dp0").0, None);
}

#[test]
fn a_vlan_that_leaves_its_tags_in_place_is_named_where_pods_should_reach_one_another() {
    let vlan = || Link { tag: Tag::LeftInPlace, ..link(2, "dp0", Kind::Vlan) };
    let status = Scene::new(vec![bridge_pool()], vec![vlan()]).status();
    let (reason, message) = reason_of(&status, "dp0");
    assert_eq!(reason, Some("HeadersNotReordered"));
    assert!(message.contains("ip link set dp0 type vlan reorder_hdr on"), "{message}");
    let private = pool("a", &json!({"links": [{"names": ["dp0"]}], "macvtap": {"mode": "Private"}}));
    assert_eq!(reason_of(&Scene::new(vec![private], vec![vlan()]).status(), "dp0").0, None);
}

#[test]
fn a_virtual_function_under_several_pods_is_named() {
    let mut function = nic(2, "dp0", 0xa);
    function.hardware.is_virtual_function = true;
    let status = Scene::new(vec![bridge_pool()], vec![function.clone()]).status();
    assert_eq!(reason_of(&status, "dp0").0, Some("FewMacFilters"));
    for whole in [json!({"type": "HostDevice"}), json!({"macvtap": {"mode": "Passthru"}})] {
        let status = Scene::new(vec![pool("a", &whole)], vec![function.clone()]).status();
        assert_eq!(reason_of(&status, "dp0").0, None, "{whole}");
    }
}

#[test]
fn a_kernel_without_macvtap_offers_whole_nics_alone() {
    let pools =
        vec![bridge_pool(), pool("b", &json!({"type": "HostDevice", "links": [{"names": ["eth1"]}]}))];
    let mut scene = Scene::new(pools, vec![veth(2, "dp0"), nic(3, "eth1", 0xb)]);
    assert_eq!(says(&scene.status(), 0, ConditionType::Ready), (true, "Serving"));
    let _ = scene.engine.world.inventory.set_macvtap(false);
    let status = scene.status();
    let (reason, message) = reason_of(&status, "dp0");
    assert_eq!(reason, Some("KernelWithoutMacvtap"));
    assert!(message.contains("the kernel has no macvtap"), "{message}");
    assert_eq!(says(&status, 0, ConditionType::Ready), (false, "NoMatchingLink"));
    assert_eq!(says(&status, 1, ConditionType::Ready), (true, "Serving"));
}

#[test]
fn a_pool_whose_indexes_are_all_taken_says_by_which_links() {
    let links = vec![veth(3, "dp0"), veth(macvtap::table::IFINDEX_FIRST, "stranger")];
    let settings = json!({"links": [{"names": ["dp0"]}], "capacity": {"perLink": 1}});
    let status = Scene::new(vec![pool("a", &settings)], links).status();
    let ready = condition::find(&status.pools[0].conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.reason, "NoHealthyLink");
    assert!(ready.message.contains("is taken by link stranger"), "{}", ready.message);
}

#[test]
fn pods_links_are_in_no_message_of_a_pool_that_matches_nothing() {
    let mut port = link(3, "eth1", Kind::Physical);
    port.master = Some(Master { ifindex: 4, kind: "bridge".into() });
    let links = vec![port, link(4, "br0", Kind::Bridge)];
    let per_link = pool("a", &json!({"resourcePer": "Link", "links": [{"kinds": ["Team"]}]}));
    let mut scene = Scene::new(vec![per_link], links);
    let before = scene.status();
    let pods: Vec<Link> = (10..15).map(|index| veth(index, &format!("veth{index:08x}"))).collect();
    for pod in pods {
        assert!(!scene.engine.concerns(&pod), "a pod's link needs no decision");
        let _ = scene.engine.world.inventory.apply(pod);
    }
    assert_eq!(scene.status_at(Some(&before), 0), before);
    assert!(scene.engine.concerns(&link(20, "eth9", Kind::Physical)));
    assert!(scene.engine.concerns(&veth(macvtap::table::IFINDEX_FIRST, "stranger")));
}

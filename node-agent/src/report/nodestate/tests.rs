mod links;
mod unmatched;

use super::*;
use crate::devices::assignment;
use crate::devices::nics::tests::in_pod;
use crate::links::inventory::tests::{link, nic};
use crate::links::link::{Kind, Link};
use crate::pools::pool::Pool;
use crate::pools::selection::tests::pool;
use jiff::Timestamp;
use serde_json::json;
use std::time::Instant;

/// A node whose status is asked for.
struct Scene {
    engine: Engine,
    configuration: Configuration,
    registrations: BTreeMap<ResourceName, Registration>,
    dead: BTreeSet<DeviceId>,
    table_error: Option<&'static str>,
    plugin: Presence,
}

impl Scene {
    fn new(pools: Vec<Pool>, links: Vec<Link>) -> Self {
        let mut engine = Engine::new(assignment::empty("boot", false), "boot".into(), false);
        let _ = engine.world.inventory.reset(links);
        let registered = |pool: &Pool| (pool.name.parse().unwrap(), Registration::Done);
        let registrations = pools.iter().map(registered).collect();
        engine.world.pools = pools;
        let configuration = Configuration { hash: Some("h".into()), ..Configuration::default() };
        Self {
            engine,
            configuration,
            registrations,
            dead: BTreeSet::new(),
            table_error: None,
            plugin: Presence::default(),
        }
    }

    fn status_at(&mut self, before: Option<&MacvtapNodeStateStatus>, second: i64) -> MacvtapNodeStateStatus {
        let step = self.engine.step(Instant::now());
        self.engine.stored(step.evolution.table.clone());
        status(&View {
            engine: &self.engine,
            step: &step,
            configuration: &self.configuration,
            registrations: &self.registrations,
            in_use: &self.engine.world.in_use,
            dead: &self.dead,
            table_error: self.table_error,
            plugin: &self.plugin,
            boot_id: "boot",
            before,
            now: &Time(Timestamp::from_second(second).unwrap()),
        })
    }

    fn status(&mut self) -> MacvtapNodeStateStatus {
        self.status_at(None, 0)
    }
}

fn says(status: &MacvtapNodeStateStatus, pool: usize, kind: ConditionType) -> (bool, &str) {
    let condition = condition::find(&status.pools[pool].conditions, kind).unwrap();
    (condition.status == "True", condition.reason.as_str())
}

fn veth(ifindex: u32, name: &str) -> Link {
    link(ifindex, name, Kind::Veth)
}

#[test]
fn a_pool_that_serves_says_so_with_its_numbers() {
    let mut scene = Scene::new(vec![pool("a", &json!({"capacity": {"perLink": 5}}))], vec![veth(2, "dp0")]);
    scene.status();
    scene.engine.world.in_use.insert("aMvp1".parse().unwrap());
    let status = scene.status();
    let entry = &status.pools[0];
    assert_eq!((entry.capacity, entry.allocatable, entry.allocated, entry.dead), (5, 5, 1, 0));
    assert_eq!((entry.links.as_slice(), entry.generation), (&["dp0".to_owned()][..], 1));
    assert_eq!(says(&status, 0, ConditionType::Ready), (true, "Serving"));
    assert_eq!(says(&status, 0, ConditionType::Degraded), (false, "AsExpected"));
    assert_eq!((status.totals.pools.as_str(), status.totals.links.as_str()), ("1/1", "1/1"));
    assert_eq!(status.observed_hash.as_deref(), Some("h"));
}

#[test]
fn what_is_wrong_with_a_pool_is_its_reason() {
    let one = || Scene::new(vec![pool("a", &json!({}))], vec![veth(2, "dp0")]);
    let mut scene = one();
    scene.table_error = Some("no space left on device");
    assert_eq!(says(&scene.status(), 0, ConditionType::Ready), (false, "TableNotWritten"));
    let mut scene = one();
    scene.registrations.insert("a".parse().unwrap(), Registration::Failed("no kubelet".into()));
    assert_eq!(says(&scene.status(), 0, ConditionType::Ready), (false, "RegistrationFailed"));
    let mut scene = one();
    scene.status();
    scene.dead.insert("aMvp0".parse().unwrap());
    assert_eq!(says(&scene.status(), 0, ConditionType::Degraded), (true, "DevicesDead"));
    let mut down = veth(2, "dp0");
    (down.admin_up, down.carrier) = (false, false);
    let mut scene = Scene::new(vec![pool("a", &json!({}))], vec![down]);
    let status = scene.status();
    assert_eq!(says(&status, 0, ConditionType::Ready), (false, "NoHealthyLink"));
    assert_eq!(status.links[0].reason.as_deref(), Some("AdminDown"));
    let mut scene = Scene::new(vec![pool("a", &json!({"macvtap": {"mtu": 9000}}))], vec![veth(2, "dp0")]);
    assert_eq!(says(&scene.status(), 0, ConditionType::Degraded), (true, "MtuTooSmall"));
    let mut scene = Scene::new(vec![pool("a", &json!({"advertisement": "DryRun"}))], vec![veth(2, "dp0")]);
    let status = scene.status();
    assert_eq!(says(&status, 0, ConditionType::Ready), (false, "DryRun"));
    assert_eq!(status.pools[0].links, ["dp0"]);
}

#[test]
fn a_plugin_that_runtimes_do_not_find_is_why_pools_are_not_ready() {
    let mut scene = Scene::new(vec![pool("a", &json!({}))], vec![veth(2, "dp0")]);
    scene.plugin.missing = Some("CNI plugin is not in /opt/cni/bin: read-only file system".into());
    let status = scene.status();
    let node = |status: &MacvtapNodeStateStatus, kind| {
        condition::find(&status.conditions, kind).map(|found| (found.status == "True", found.reason.clone()))
    };
    assert_eq!(says(&status, 0, ConditionType::Ready), (false, "PluginMissing"));
    assert_eq!(node(&status, ConditionType::Ready), Some((false, "PluginMissing".into())));
    scene.plugin = Presence { missing: None, doubt: Some("no other CNI plugin is in /opt/cni/bin".into()) };
    let status = scene.status();
    assert_eq!(says(&status, 0, ConditionType::Ready), (true, "Serving"));
    assert_eq!(node(&status, ConditionType::Ready), Some((true, "AsExpected".into())));
    assert_eq!(node(&status, ConditionType::Degraded), Some((true, "NoOtherPlugin".into())));
}

#[test]
fn a_nic_that_is_in_a_pod_is_told_with_the_pod_and_counts_for_its_pool() {
    let mut scene = Scene::new(vec![pool("a", &json!({"type": "HostDevice"}))], vec![nic(2, "eth1", 0xa)]);
    scene.status();
    let device: DeviceId = "aMvp0".parse().unwrap();
    let taken = scene.engine.world.inventory.get(2).unwrap().clone();
    scene.engine.world.in_pods.insert(device.clone(), in_pod(&taken));
    scene.engine.world.in_use.insert(device);
    let _ = scene.engine.world.inventory.remove(2);
    let status = scene.status();
    assert_eq!(says(&status, 0, ConditionType::Ready), (true, "Serving"));
    assert_eq!(says(&status, 0, ConditionType::Degraded), (false, "AsExpected"));
    let entry = &status.pools[0];
    assert_eq!((entry.capacity, entry.allocatable, entry.allocated), (1, 1, 1));
    assert_eq!(entry.links, ["eth1"]);
    let [link] = status.links.as_slice() else { panic!("{:?}", status.links) };
    assert_eq!(link.pci_address.as_deref(), Some("0000:00:0a.0"));
    assert_eq!(
        (link.reason.as_deref(), link.message.as_deref()),
        (Some("InPod"), Some("eth1 is in pod default/vm"))
    );
}

#[test]
fn pods_links_are_not_listed_and_a_nic_nobody_wants_is() {
    let links = vec![
        link(1, "lo", Kind::Loopback),
        link(2, "eth0", Kind::Physical),
        veth(3, "vethpod"),
        veth(4, "dp0"),
    ];
    let mut scene = Scene::new(vec![pool("a", &json!({"links": [{"names": ["dp0"]}]}))], links);
    let status = scene.status();
    let listed: Vec<_> =
        status.links.iter().map(|link| (link.name.as_str(), link.reason.as_deref())).collect();
    assert_eq!(listed, [("dp0", None), ("eth0", Some("NotSelected"))]);
}

#[test]
fn more_links_than_can_be_listed_are_counted_and_those_in_use_stay() {
    let links = (1..=200).map(|i| link(i, &format!("e{i:03}"), Kind::Physical)).collect();
    let mut scene = Scene::new(vec![pool("a", &json!({"links": [{"names": ["e200"]}]}))], links);
    let status = scene.status();
    assert_eq!((status.links.len(), status.truncated_links), (LINKS_MAX, 72));
    assert!(status.links.iter().any(|link| link.name == "e200" && link.pools == ["a"]));
}

#[test]
fn the_same_state_is_the_same_status_whenever_it_is_asked_for() {
    let mut scene = Scene::new(vec![pool("a", &json!({}))], vec![veth(2, "dp0")]);
    let first = scene.status_at(None, 10);
    assert_eq!(scene.status_at(Some(&first), 20), first);
    let _ = scene.engine.world.inventory.remove(2);
    let later = scene.status_at(Some(&first), 30);
    let ready = condition::find(&later.pools[0].conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.last_transition_time, Time(Timestamp::from_second(30).unwrap()));
}

#[test]
fn a_pool_that_cannot_be_read_does_not_hide_the_others() {
    let mut scene = Scene::new(vec![pool("a", &json!({}))], vec![veth(2, "dp0")]);
    let refuse = |scene: &mut Scene, name: &str| {
        scene.configuration.refused.push(crate::config::RefusedPool {
            name: name.into(),
            generation: 2,
            message: format!("pool {name}: name pattern"),
        });
    };
    refuse(&mut scene, "b");
    let status = scene.status();
    assert_eq!(says(&status, 0, ConditionType::Ready), (true, "Serving"));
    assert_eq!(says(&status, 1, ConditionType::Ready), (false, "NotSupported"));
    assert_eq!(status.totals.pools, "1/2");
    // One that is served with its former settings.
    refuse(&mut scene, "a");
    let kept = scene.status();
    assert_eq!((kept.pools.len(), says(&kept, 0, ConditionType::Ready)), (2, (false, "NotSupported")));
    assert_eq!(kept.pools[0].capacity, status.pools[0].capacity);
    assert_eq!(condition::find(&status.conditions, ConditionType::Ready).unwrap().reason, "PoolsNotReady");
}

#[test]
fn a_device_whose_index_is_taken_is_told_with_the_link_that_has_it_and_its_own_link_is_well() {
    let mut scene = Scene::new(
        vec![pool("a", &json!({"links": [{"names": ["dp0"]}], "capacity": {"perLink": 10}}))],
        vec![veth(3, "dp0")],
    );
    scene.status();
    let index = macvtap::table::IFINDEX_FIRST + 4;
    let _ = scene.engine.world.inventory.apply(veth(index, "stranger"));
    let status = scene.status();
    assert_eq!(says(&status, 0, ConditionType::Ready), (true, "Serving"));
    assert_eq!(says(&status, 0, ConditionType::Degraded), (true, "IndexTaken"));
    let message = &condition::find(&status.pools[0].conditions, ConditionType::Degraded).unwrap().message;
    let wanted = format!(
        "index {index} of device aMvp4 is taken by link stranger of the node until that link is gone"
    );
    assert_eq!(*message, wanted);
    assert_eq!((status.pools[0].allocatable, status.pools[0].unhealthy_links.len()), (9, 0));
    let link = status.links.iter().find(|link| link.name == "dp0").unwrap();
    assert_eq!(link.reason.as_deref(), Some("IndexTaken"));
    assert_eq!(link.message.as_deref(), Some(wanted.as_str()));
    let _ = scene.engine.world.inventory.remove(index);
    assert_eq!(says(&scene.status(), 0, ConditionType::Degraded), (false, "AsExpected"));
}

#[test]
fn a_link_for_which_the_nodes_limit_leaves_nothing_says_so() {
    let settings = json!({"capacity": {"perLink": 10, "perNode": 1}});
    let status = Scene::new(vec![pool("a", &settings)], vec![veth(3, "dp0"), veth(4, "dp1")]).status();
    let reasons: Vec<_> = status.links.iter().map(|link| link.reason.as_deref()).collect();
    assert_eq!(reasons, [None, Some("CapacityReached")]);
    assert_eq!(says(&status, 0, ConditionType::Ready), (true, "Serving"));
}

#[test]
fn a_link_that_has_the_name_of_another_one_whose_devices_are_in_use_says_so() {
    let mut one = link(3, "eth0", Kind::Physical);
    one.mac = Some("02:00:00:00:00:01".parse().unwrap());
    let mut scene = Scene::new(vec![pool("a", &json!({"capacity": {"perLink": 10}}))], vec![one.clone()]);
    scene.status();
    scene.engine.world.in_use.insert("aMvp4".parse().unwrap());
    (one.ifindex, one.mac) = (4, Some("02:00:00:00:00:02".parse().unwrap()));
    let _ = scene.engine.world.inventory.reset([one]);
    let status = scene.status();
    assert_eq!(status.links[0].reason.as_deref(), Some("LinkReplaced"));
    assert_eq!((status.pools[0].capacity, status.pools[0].allocatable), (11, 10));
}

#[test]
fn a_kubelet_that_does_not_answer_is_told_apart_from_one_that_refuses() {
    let mut scene = Scene::new(vec![pool("a", &json!({}))], vec![veth(3, "dp0")]);
    for (registration, pool_reason, node_reason) in [
        (Registration::Pending, "Registering", "PoolsNotReady"),
        (Registration::Unreachable("no socket".into()), "KubeletUnreachable", "KubeletUnreachable"),
        (Registration::Failed("no".into()), "RegistrationFailed", "PoolsNotReady"),
    ] {
        scene.registrations.insert("a".parse().unwrap(), registration);
        let status = scene.status();
        assert_eq!(says(&status, 0, ConditionType::Ready), (false, pool_reason));
        assert_eq!(condition::find(&status.conditions, ConditionType::Ready).unwrap().reason, node_reason);
    }
}

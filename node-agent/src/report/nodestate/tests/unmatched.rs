//! Devices in use of links that a pool has no longer.

use super::*;

/// A pool with a resource for each link, and a pod with a device of `dp0`.
fn scene() -> Scene {
    let mut scene = Scene::new(vec![per_link(&json!({}))], vec![veth(2, "dp0"), veth(3, "dp1")]);
    scene.status();
    scene.engine.world.in_use.insert("dp0Mvp0".parse().unwrap());
    assert_eq!(scene.status().pools[0].allocated, 1);
    scene
}

fn per_link(says: &serde_json::Value) -> Pool {
    let mut settings =
        json!({"links": [{"names": ["dp*"]}], "resourcePer": "Link", "capacity": {"perLink": 2}});
    settings.as_object_mut().unwrap().extend(says.as_object().unwrap().clone());
    pool("a", &settings)
}

#[test]
fn a_device_in_use_counts_for_its_pool_when_its_link_is_gone() {
    let mut scene = scene();
    let _ = scene.engine.world.inventory.remove(2);
    let _ = scene.engine.world.inventory.remove(3);
    scene.dead.insert("dp0Mvp0".parse().unwrap());
    let status = scene.status();
    assert_eq!((status.pools[0].allocated, status.pools[0].dead), (1, 1));
    assert_eq!(status.pools[0].resources, ["dp0"]);
    assert_eq!(says(&status, 0, ConditionType::Degraded), (true, "DevicesDead"));
    scene.engine.world.pools[0].draining = true;
    assert_eq!(says(&scene.status(), 0, ConditionType::Ready), (false, "Draining"));
    scene.engine.world.in_use.clear();
    assert_eq!(says(&scene.status(), 0, ConditionType::Ready), (false, "Drained"));
}

#[test]
fn a_device_in_use_counts_for_its_pool_when_that_was_edited_so_that_it_has_the_link_no_longer() {
    for edit in [json!({"links": [{"names": ["none"]}]}), json!({"advertisement": "DryRun"})] {
        let mut scene = scene();
        scene.engine.world.pools[0] = per_link(&edit);
        assert_eq!(scene.status().pools[0].allocated, 1, "{edit}");
        scene.engine.world.pools[0].draining = true;
        assert_eq!(says(&scene.status(), 0, ConditionType::Ready), (false, "Draining"), "{edit}");
    }
}

#[test]
fn a_device_in_use_of_a_link_that_went_to_another_pool_counts_once() {
    let mut scene = scene();
    scene.engine.world.pools.push(pool("b", &json!({"links": [{"names": ["dp0"]}], "resourcePer": "Link"})));
    scene.engine.world.pools[0] = per_link(&json!({"links": [{"names": ["dp1"]}]}));
    let status = scene.status();
    let allocated: Vec<u32> = status.pools.iter().map(|pool| pool.allocated).collect();
    assert_eq!(allocated.iter().sum::<u32>(), 1, "{allocated:?}");
}

//! The operator's executable against a real API server. Agents are played by the tests: they write what an agent would.

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use scene::{DEADLINE, MULTUS_KIND, NETWORKS, Scene, foreign, network};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn a_pool_goes_from_node_states_to_ready_and_is_drained_before_it_goes() -> Result<()> {
    let scene = Scene::new(&["n1", "n2"], true)?;
    scene.namespace("tenant", &json!({}))?;
    scene.api.replace(&foreign("tenant", "other"))?;
    scene.pool("dp", &network("net", &json!({"names": ["tenant"]})))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.expect_pools("n2", &[("dp", "Active")])?;
    scene.says("dp", "Ready", "False", "NoMatchingNodes")?;
    let owner = scene.api.kubectl.get("", "mns/n1")?["metadata"]["ownerReferences"][0].clone();
    ensure!(owner["kind"] == "Node" && owner.get("blockOwnerDeletion").is_none(), "owner is {owner}");

    scene.answer("n1", 2)?;
    scene.answer("n2", 0)?;
    scene.ready_nodes("dp", "2/2")?;
    let message = scene.says("dp", "Ready", "True", "AllNodesReady")?;
    assert_eq!(message, "2 of 2 nodes offer devices");
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    let (config, resource) = scene.network("tenant", "net")?;
    assert_eq!(config, json!({"cniVersion": "1.0.0", "name": "net", "type": "macvtap"}));
    assert_eq!(resource, "macvtap.network.kubevirt.io/dp");
    let table = scene.api.table(&["get", "mrp", "dp"])?;
    assert_eq!(table["NODES"], "2/2");
    assert_eq!((table["DEVICES"].as_str(), table["ALLOCATED"].as_str()), ("100", "2"));

    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    scene.expect_pools("n1", &[("dp", "Draining")])?;
    scene.answer("n2", 0)?;
    let message = scene.says("dp", "Terminating", "True", "DevicesInUse")?;
    ensure!(message.contains("n1 (2)"), "{message}");
    scene.network("tenant", "net").context("networks stay while devices are in use")?;
    scene.answer("n1", 1)?;
    scene.expect_pools("n2", &[])?;
    scene.expect_pools("n1", &[("dp", "Draining")])?;
    scene.answer("n1", 0)?;
    scene.gone("", "mrp/dp")?;
    scene.gone("tenant", &format!("{NETWORKS}/net"))?;
    scene.expect_pools("n1", &[])?;
    let other = scene.api.kubectl.get("tenant", &format!("{NETWORKS}/other"))?;
    assert_eq!(other["spec"]["config"], "{\"type\": \"bridge\"}");
    Ok(())
}

#[test]
fn of_two_pools_with_one_resource_name_the_older_keeps_it_until_it_goes() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("first", &json!({"resourceName": "dp"}))?;
    scene.says("first", "Accepted", "True", "Valid")?;
    // Of pools that were created within one second, the one whose name comes first counts as the older.
    scene.pool("second", &json!({"resourceName": "dp", "resourcePrefix": "example.com"}))?;
    let message = scene.says("second", "Accepted", "False", "ResourceNameConflict")?;
    ensure!(message.contains("pool first"), "{message}");
    scene.says("second", "Ready", "False", "NotAccepted")?;
    scene.expect_pools("n1", &[("first", "Active")])?;
    scene.event("second", "ResourceNameConflict")?;
    scene.api.kubectl.run(&["delete", "mrp", "first"])?;
    scene.says("second", "Accepted", "True", "Valid")?;
    scene.expect_pools("n1", &[("second", "Active")])
}

#[test]
fn networks_follow_namespaces_are_repaired_and_never_take_what_is_not_ours() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.namespace("a", &json!({"macvtap": "yes"}))?;
    scene.namespace("b", &json!({}))?;
    scene.pool("dp", &network("net", &json!({"selector": {"matchLabels": {"macvtap": "yes"}}})))?;
    scene.network("a", "net")?;
    scene.namespace("b", &json!({"macvtap": "yes"}))?;
    scene.network("b", "net")?;
    scene.namespace("b", &json!({"macvtap": "no"}))?;
    scene.gone("b", &format!("{NETWORKS}/net"))?;

    let edit = r#"{"spec": {"config": "{}"}}"#;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    scene.api.kubectl.run(&["-n", "a", "patch", NETWORKS, "net", "--type=merge", "-p", edit])?;
    scene.api.kubectl.wait_until("a", &format!("{NETWORKS}/net"), DEADLINE, |network| {
        network["spec"]["config"].as_str()?.contains("macvtap").then_some(())
    })?;
    scene.event("dp", "NetworkRepaired")?;
    scene.api.kubectl.run(&["-n", "a", "delete", NETWORKS, "net"])?;
    scene.network("a", "net")?;

    scene.api.replace(&foreign("b", "net"))?;
    scene.namespace("b", &json!({"macvtap": "yes"}))?;
    let message = scene.says("dp", "NetworksReady", "False", "NADConflict")?;
    ensure!(message.contains("b/net"), "{message}");
    let config = scene.api.kubectl.get("b", &format!("{NETWORKS}/net"))?["spec"]["config"].clone();
    assert_eq!(config, "{\"type\": \"bridge\"}");
    scene.api.kubectl.run(&["delete", "mrp", "dp"])?;
    scene.gone("a", &format!("{NETWORKS}/net"))?;
    scene.api.kubectl.get("b", &format!("{NETWORKS}/net")).context("the foreign network is gone")?;
    Ok(())
}

#[test]
fn a_cluster_without_multus_says_so_until_it_is_installed() -> Result<()> {
    let scene = Scene::new(&["n1"], false)?;
    scene.pool("dp", &network("net", &json!({"names": ["default", "missing"]})))?;
    scene.says("dp", "NetworksReady", "False", "NADKindMissing")?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.api.kubectl.apply(MULTUS_KIND)?;
    scene.api.kubectl.run(&["wait", "--for=condition=Established", "--timeout=30s", "crd", NETWORKS])?;
    // The watch looks again with growing pauses of up to half a minute.
    let network = format!("{NETWORKS}/net");
    scene.api.kubectl.wait_until("default", &network, Duration::from_mins(1), |_| Some(()))?;
    let message = scene.says("dp", "NetworksReady", "False", "NamespaceNotFound")?;
    ensure!(message.contains("missing"), "{message}");
    scene.namespace("missing", &json!({}))?;
    scene.network("missing", "net")?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    Ok(())
}

#[test]
fn nodes_come_change_and_go() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("zoned", &json!({"nodeSelector": {"matchLabels": {"zone": "a"}}}))?;
    scene.pool("everywhere", &json!({"priority": 5, "resourceName": "e"}))?;
    scene.expect_pools("n1", &[("everywhere", "Active")])?;
    scene.node("n2", &json!({"zone": "a"}))?;
    scene.expect_pools("n2", &[("everywhere", "Active"), ("zoned", "Active")])?;
    scene.answer("n2", 1)?;
    scene.says("zoned", "Ready", "True", "AllNodesReady")?;
    scene.node("n2", &json!({"zone": "b"}))?;
    scene.expect_pools("n2", &[("everywhere", "Active"), ("zoned", "Draining")])?;
    scene.says("zoned", "Ready", "False", "NoMatchingNodes")?;
    scene.answer("n2", 0)?;
    scene.expect_pools("n2", &[("everywhere", "Active")])?;
    scene.api.kubectl.run(&["delete", "mns", "n1"])?;
    scene.expect_pools("n1", &[("everywhere", "Active")]).context("a deleted node state comes back")
}

#[test]
fn at_rest_and_after_a_restart_nothing_is_written() -> Result<()> {
    let mut scene = Scene::new(&["n1", "n2"], true)?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.expect_pools("n2", &[("dp", "Active")])?;
    scene.answer("n1", 1)?;
    scene.answer("n2", 1)?;
    scene.ready_nodes("dp", "2/2")?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    let before = scene.versions()?;
    let operator = scene.operator.take().context("no operator")?;
    assert_eq!(operator.terminate()?, Some(0), "an operator that is asked to end ends well");
    scene.start()?;
    // The new operator has looked at everything once it has served a pool that was made after its start.
    scene.pool("probe", &json!({"nodeSelector": {"matchLabels": {"none": "such"}}}))?;
    scene.says("probe", "Ready", "False", "NoMatchingNodes")?;
    scene.api.kubectl.run(&["delete", "mrp", "probe"])?;
    assert_eq!(scene.versions()?, before);
    Ok(())
}

#[test]
fn a_pool_that_cannot_be_read_stops_nobody() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    // What an older version of the kind let in, or a newer one knows: the schema is out of the way while it is made.
    let unknown = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    let crd = "macvtapresourcepools.macvtap.network.kubevirt.io";
    scene.api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", unknown])?;
    e2e::wait::until("the loose schema", DEADLINE, || {
        scene.pool("strange", &json!({"macvtap": {"mode": "Teleport"}})).map(Some)
    })?;
    scene.pool("sound", &json!({}))?;
    scene.expect_pools("n1", &[("sound", "Active")])?;
    scene.says("sound", "Accepted", "True", "Valid")?;
    let message = scene.says("strange", "Accepted", "False", "NotReadable")?;
    ensure!(message.contains("Teleport"), "{message}");
    scene.event("strange", "NotReadable")?;

    // What is readable again has its effect again, and one that never was can be deleted.
    scene.pool("sound", &json!({"macvtap": {"mode": "Teleport"}}))?;
    scene.says("sound", "Accepted", "False", "NotReadable")?;
    scene.expect_pools("n1", &[("sound", "Active")]).context("nodes keep what they were told")?;
    scene.pool("sound", &json!({"macvtap": {"mode": "Private"}}))?;
    scene.says("sound", "Accepted", "True", "Valid")?;
    scene.api.kubectl.run(&["delete", "mrp", "strange", "--timeout=60s"])?;
    scene.pool("sound", &json!({"macvtap": {"mode": "Teleport"}}))?;
    scene.says("sound", "Accepted", "False", "NotReadable")?;
    scene.api.kubectl.run(&["delete", "mrp", "sound", "--timeout=60s"])?;
    scene.expect_pools("n1", &[])
}

#[test]
fn a_node_state_that_was_edited_by_hand_or_is_unreadable_is_made_right() -> Result<()> {
    let scene = Scene::new(&["n1"], false)?;
    scene.pool("dp", &json!({}))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    let right = scene.spec_of("n1")?;
    for edit in [
        r#"{"spec": {"pools": []}}"#,
        r#"{"spec": {"configHash": "mine"}}"#,
        r#"{"metadata": {"ownerReferences": []}}"#,
    ] {
        let before = scene.api.kubectl.get("", "mns/n1")?;
        scene.api.kubectl.run(&["patch", "mns", "n1", "--type=merge", "-p", edit])?;
        scene.api.kubectl.wait_until("", "mns/n1", DEADLINE, |state| {
            let same = |path: &str| state.pointer(path) == before.pointer(path);
            (same("/spec") && same("/metadata/ownerReferences")).then_some(())
        })?;
    }
    let loose = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    let crd = "macvtapnodestates.macvtap.network.kubevirt.io";
    scene.api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", loose])?;
    let odd = r#"{"spec": {"pools": [{"name": "odd", "phase": "Melting"}]}}"#;
    e2e::wait::until("the loose schema", DEADLINE, || {
        scene.api.kubectl.run(&["patch", "mns", "n1", "--type=merge", "-p", odd]).map(Some)
    })?;
    scene
        .api
        .kubectl
        .wait_until("", "mns/n1", DEADLINE, |state| (state["spec"]["pools"] == right).then_some(()))
}

#[test]
fn a_deleted_pool_does_not_wait_for_nodes_that_are_gone_or_given_up() -> Result<()> {
    let mut scene = Scene::new(&["gone", "dead", "alive"], false)?;
    scene.pool("dp", &json!({}))?;
    for node in ["gone", "dead", "alive"] {
        scene.expect_pools(node, &[("dp", "Active")])?;
        scene.answer(node, 3)?;
    }
    scene.ready_nodes("dp", "3/3")?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    let message = scene.says("dp", "Terminating", "True", "DevicesInUse")?;
    ensure!(message.contains("9 devices in use on 3 nodes"), "{message}");
    scene.api.kubectl.run(&["delete", "node", "gone"])?;
    let release = "macvtap.network.kubevirt.io/release-without-drain=dead,alive";
    scene.api.kubectl.run(&["annotate", "mrp", "dp", release])?;
    scene.not_ready("dead")?;
    scene.restart()?;
    scene.expect_pools("dead", &[])?;
    scene.event("dp", "ReleasedWithoutDrain")?;
    scene.expect_pools("alive", &[("dp", "Draining")]).context("a node that answers is waited for")?;
    scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| {
        let conditions = pool.pointer("/status/conditions")?.as_array()?;
        let message = conditions.iter().find(|c| c["type"] == "Terminating")?["message"].as_str()?;
        message.contains("3 devices in use on 1 nodes: alive").then_some(())
    })?;
    scene.answer("alive", 0)?;
    scene.gone("", "mrp/dp")
}

#[test]
fn a_node_is_unreachable_when_it_or_the_pod_of_its_agent_is_not_ready() -> Result<()> {
    let mut scene = Scene::new(&["n1", "n2"], false)?;
    scene.pool("dp", &json!({}))?;
    for node in ["n1", "n2"] {
        scene.expect_pools(node, &[("dp", "Active")])?;
        scene.answer(node, 0)?;
        scene.agent(node, true)?;
    }
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.agent("n2", false)?;
    scene.restart()?;
    let message = scene.says("dp", "Degraded", "True", "NodesUnreachable")?;
    ensure!(message.contains("n2: Unreachable"), "{message}");
    scene
        .says("dp", "Ready", "True", "AllNodesReady")
        .context("who does not answer says nothing against it")?;
    scene.agent("n2", true)?;
    scene.says("dp", "Degraded", "False", "AsExpected")?;
    scene.not_ready("n1")?;
    scene.restart()?;
    let message = scene.says("dp", "Degraded", "True", "NodesUnreachable")?;
    ensure!(message.contains("n1: Unreachable"), "{message}");
    Ok(())
}

#[test]
fn a_staged_rollout_goes_by_batches_halts_and_resumes() -> Result<()> {
    let nodes = ["n1", "n2", "n3", "n4"];
    let scene = Scene::new(&nodes, false)?;
    for node in nodes {
        scene.expect_pools(node, &[])?;
        scene.answer(node, 0)?;
    }
    let staged = |mtu: u32| {
        let rollout = json!({"type": "Staged", "staged": {"batch": 2, "maxDegraded": 0}});
        json!({"macvtap": {"mtu": mtu}, "rollout": rollout})
    };
    scene.pool("dp", &staged(1500))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.expect_pools("n2", &[("dp", "Active")])?;
    let waiting = |what: &str| -> Result<()> {
        for node in ["n3", "n4"] {
            ensure!(scene.spec_of(node)? == json!([]), "{node} was told {what}");
        }
        Ok(())
    };
    scene.answer("n1", 0)?;
    scene.ready_nodes("dp", "1/4")?;
    waiting("before the first batch was ready")?;
    scene.answer_with("n2", 0, &scene::condition("Ready", "False", "MtuTooSmall"))?;
    let message = scene.says("dp", "Progressing", "False", "RolloutHalted")?;
    ensure!(message.contains("last 2 nodes") && message.contains("n2: MtuTooSmall"), "{message}");
    scene.event("dp", "RolloutHalted")?;
    waiting("after the halt")?;
    scene.answer("n2", 0)?;
    for node in ["n3", "n4"] {
        scene.expect_pools(node, &[("dp", "Active")])?;
        scene.answer(node, 0)?;
    }
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.says("dp", "Progressing", "False", "UpToDate")?;

    // An edit is staged too, and going back is an edit.
    let mtu = |node: &str, mtu: u32| {
        scene.api.kubectl.wait_until("", &format!("mns/{node}"), DEADLINE, |state| {
            (state.pointer("/spec/pools/0/macvtap/mtu")? == mtu).then_some(())
        })
    };
    scene.pool("dp", &staged(9000))?;
    for node in ["n1", "n2"] {
        mtu(node, 9000)?;
        scene.answer_with(node, 0, &scene::condition("Ready", "False", "MtuTooSmall"))?;
    }
    scene.says("dp", "Progressing", "False", "RolloutHalted")?;
    mtu("n3", 1500)?;
    scene.pool("dp", &staged(1500))?;
    for node in ["n1", "n2"] {
        mtu(node, 1500)?;
        scene.answer(node, 0)?;
    }
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    Ok(())
}

#[test]
fn each_link_that_any_node_reports_has_its_network_until_none_does() -> Result<()> {
    let scene = Scene::new(&["n1", "n2"], true)?;
    let networks = json!([{"name": "m-{link}", "namespaces": {"names": ["default"]}}]);
    scene.pool("links", &json!({"resourcePer": "Link", "networks": networks}))?;
    let report = |node: &str, resources: Value| -> Result<()> {
        scene.expect_pools(node, &[("links", "Active")])?;
        let hash = scene.api.kubectl.get("", &format!("mns/{node}"))?["spec"]["configHash"].clone();
        let ready = scene::condition("Ready", "True", "Serving");
        let pool = json!({"name": "links", "generation": 1, "allocatable": 1, "resources": resources, "conditions": [ready]});
        scene.api.patch_status(&format!("mns/{node}"), &json!({"observedHash": hash, "pools": [pool]}))
    };
    report("n1", json!(["eth0"]))?;
    report("n2", json!(["eth0", "Bond_1"]))?;
    let (_, resource) = scene.network("default", "m-bond-1")?;
    assert_eq!(resource, "macvtap.network.kubevirt.io/Bond_1");
    scene.network("default", "m-eth0")?;
    report("n2", json!(["eth0"]))?;
    scene.gone("default", &format!("{NETWORKS}/m-bond-1"))?;
    scene.network("default", "m-eth0").context("n1 still has it")?;
    Ok(())
}

#[test]
fn a_pool_for_which_a_node_has_no_room_says_so() -> Result<()> {
    let scene = Scene::new(&["n1"], false)?;
    let pool = |number: u32, priority: u32| {
        json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
            "kind": "MacvtapResourcePool",
            "metadata": {"name": format!("p{number:02}")},
            "spec": {"links": [{"names": ["dp0"]}], "priority": priority},
        })
    };
    let pools: Vec<Value> = (0..64).map(|number| pool(number, 5)).chain([pool(64, 0)]).collect();
    scene.api.replace(&json!({"apiVersion": "v1", "kind": "List", "items": pools}))?;
    scene.api.kubectl.wait_until("", "mns/n1", DEADLINE, |state| {
        let pools = state.pointer("/spec/pools")?.as_array()?;
        (pools.len() == 64 && pools.iter().all(|pool| pool["name"] != "p64")).then_some(())
    })?;
    scene.answer("n1", 0)?;
    let message = scene.says("p64", "Degraded", "True", "NodesDegraded")?;
    ensure!(message.contains("n1: TooManyPools"), "{message}");
    scene.api.kubectl.run(&["patch", "mrp", "p64", "--type=merge", "-p", r#"{"spec": {"priority": 9}}"#])?;
    scene.api.kubectl.wait_until("", "mns/n1", DEADLINE, |state| {
        (state.pointer("/spec/pools/63/phase")? == "Draining").then_some(())
    })?;
    scene.answer("n1", 0)?;
    scene.api.kubectl.wait_until("", "mns/n1", DEADLINE, |state| {
        (state.pointer("/spec/pools/0/name")? == "p64").then_some(())
    })
}

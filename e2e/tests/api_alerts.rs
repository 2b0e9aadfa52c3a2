//! The alerts of the chart: each fires and clears by promtool's own tests, and those of pools and operator by real faults
//! of a real operator that a real Prometheus scrapes. Agents are played by the test.

mod api;
#[path = "api/prometheus.rs"]
mod prometheus;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use api::Program;
use e2e::layout::Checkout;
use e2e::{process, wait};
use prometheus::Prometheus;
use scene::{DEADLINE, Scene, condition, network};
use serde_json::{Value, json};
use std::process::Command;

/// A scene whose operator is scraped.
fn observed(nodes: &[&str]) -> Result<(Scene, Prometheus)> {
    let scene = Scene::new(nodes, true)?;
    let prometheus = Prometheus::start()?;
    scrape(&scene, &prometheus)?;
    Ok((scene, prometheus))
}

fn scrape(scene: &Scene, prometheus: &Prometheus) -> Result<()> {
    let operator = scene.operator.as_ref().context("no operator runs")?;
    prometheus.scrape(&[wait::until("the operator's address", DEADLINE, || operator.address().map(Some))?])
}

/// Changes what a node reports of its first pool.
fn report(scene: &Scene, node: &str, change: impl Fn(&mut Value)) -> Result<()> {
    let mut status = scene.api.kubectl.get("", &format!("mns/{node}"))?["status"].clone();
    change(&mut status["pools"][0]);
    scene.api.patch_status(&format!("mns/{node}"), &json!({"pools": status["pools"]}))
}

#[test]
fn promtool_accepts_the_rules_and_each_alert_fires_and_clears() -> Result<()> {
    let checkout = Checkout::here();
    let dir = tempfile::tempdir()?;
    for file in [prometheus::RULES, "e2e/tests/alerts/rules_test.yaml"] {
        let path = checkout.path(file);
        std::fs::copy(&path, dir.path().join(path.file_name().context("no name")?))?;
    }
    let promtool = prometheus::program("promtool")?;
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "rules_test.yaml"]] {
        process::output(Command::new(&promtool).args(args).current_dir(dir.path()))?;
    }
    Ok(())
}

#[test]
fn alerts_of_a_pool_fire_by_what_its_nodes_report_and_clear_when_it_is_mended() -> Result<()> {
    let (mut scene, prometheus) = observed(&["n1", "n2"])?;
    scene.pool("dp", &network("net", &json!({"names": ["tenant"]})))?;
    let well = |allocated: u32| -> Result<()> {
        for node in ["n1", "n2"] {
            scene.expect_pools(node, &[("dp", "Active")])?;
            scene.answer(node, allocated)?;
        }
        Ok(())
    };
    well(1)?;
    let cycle =
        |alert: &str, fault: &dyn Fn() -> Result<()>, remedy: &dyn Fn() -> Result<()>| -> Result<()> {
            fault().and_then(|()| prometheus.fires(alert, Some("dp"))).with_context(|| alert.to_owned())?;
            remedy().and_then(|()| prometheus.clears(alert, Some("dp"))).with_context(|| alert.to_owned())
        };
    cycle("MacvtapPoolNetworksNotReady", &|| Ok(()), &|| scene.namespace("tenant", &json!({})))?;
    cycle("MacvtapPoolNearlyExhausted", &|| well(47), &|| well(1))?;
    cycle("MacvtapPoolDevicesDead", &|| report(&scene, "n1", |pool| pool["dead"] = json!(1)), &|| well(1))?;
    let bad = json!([condition("Ready", "True", "Serving"), condition("Degraded", "True", "LinksUnhealthy")]);
    let degraded = || report(&scene, "n1", |pool| pool["conditions"] = bad.clone());
    cycle("MacvtapPoolNodesDegraded", &degraded, &|| well(1))?;
    let down = |node: &str| {
        report(&scene, node, |pool| {
            pool["allocatable"] = json!(0);
            pool["conditions"] = json!([condition("Ready", "False", "NoHealthyLink")]);
        })
    };
    cycle("MacvtapPoolNotReady", &|| down("n1"), &|| well(1))?;
    cycle("MacvtapPoolNotServing", &|| down("n1").and_then(|()| down("n2")), &|| well(1))?;
    for node in ["n1", "n2"] {
        scene.agent(node, true)?;
    }
    scene.agent("n2", false)?;
    scene.restart()?;
    scrape(&scene, &prometheus)?;
    cycle("MacvtapPoolNodesUnreachable", &|| Ok(()), &|| scene.agent("n2", true))?;
    cycle(
        "MacvtapPoolStuckTerminating",
        &|| scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"]).map(drop),
        &|| {
            for node in ["n1", "n2"] {
                scene.answer(node, 0)?;
            }
            scene.gone("", "mrp/dp")
        },
    )
}

#[test]
fn a_dry_run_raises_no_alert_until_it_is_meant_to_serve() -> Result<()> {
    let (scene, prometheus) = observed(&["n1"])?;
    let dry = |advertisement: &str| {
        let mut spec = network("net", &json!({"names": ["default"]}));
        spec["advertisement"] = json!(advertisement);
        scene.pool("dry", &spec)
    };
    let offers_nothing = |reason: &str| {
        scene.expect_pools("n1", &[("dry", "Active")])?;
        scene.answer_with("n1", 0, &condition("Ready", "False", reason))?;
        report(&scene, "n1", |pool| pool["allocatable"] = json!(0))
    };
    dry("DryRun").and_then(|()| offers_nothing("DryRun"))?;
    scene.says("dry", "Ready", "False", "DryRun")?;
    // Another pool's alert shows that the rules were evaluated since.
    scene.pool("late", &json!({"resourceName": "dry"}))?;
    prometheus.fires("MacvtapPoolNotAccepted", Some("late"))?;
    prometheus.clears("MacvtapPoolNotServing", Some("dry"))?;
    prometheus.clears("MacvtapPoolNetworksNotReady", Some("dry"))?;
    dry("Enabled").and_then(|()| offers_nothing("NoHealthyLink"))?;
    prometheus.fires("MacvtapPoolNotServing", Some("dry"))
}

#[test]
fn a_pool_that_is_not_accepted_or_whose_rollout_halts_raises_an_alert() -> Result<()> {
    let (scene, prometheus) = observed(&["n1", "n2"])?;
    for node in ["n1", "n2"] {
        scene.expect_pools(node, &[])?;
        scene.answer(node, 0)?;
    }
    let rollout = json!({"type": "Staged", "staged": {"batch": 1, "maxDegraded": 0}});
    scene.pool("dp", &json!({"rollout": rollout}))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer_with("n1", 0, &condition("Ready", "False", "MtuTooSmall"))?;
    prometheus.fires("MacvtapPoolRolloutHalted", Some("dp"))?;
    scene.answer("n1", 0)?;
    prometheus.clears("MacvtapPoolRolloutHalted", Some("dp"))?;

    scene.pool("late", &json!({"resourceName": "dp"}))?;
    prometheus.fires("MacvtapPoolNotAccepted", Some("late"))?;
    scene.api.kubectl.run(&["delete", "mrp", "late"])?;
    prometheus.clears("MacvtapPoolNotAccepted", Some("late"))
}

#[test]
fn alerts_of_the_operator_fire_without_a_leader_with_two_and_when_its_requests_are_denied() -> Result<()> {
    let (mut scene, prometheus) = observed(&["n1"])?;
    scene.pool("dp", &json!({}))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.operator = None;
    prometheus.fires("MacvtapOperatorNoLeader", None)?;
    scene.start()?;
    scrape(&scene, &prometheus)?;
    prometheus.clears("MacvtapOperatorNoLeader", None)?;

    scene.namespace("second", &json!({}))?;
    let first = scene.operator.as_ref().context("no operator runs")?.address()?;
    let dir = tempfile::tempdir()?;
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::copy(scene.api.kubectl.kubeconfig(), &kubeconfig)?;
    let args = ["--listen", "127.0.0.1:0", "--namespace", "second"];
    let second = Program::start("macvtap-operator", &args, &kubeconfig)?;
    let address = wait::until("the second operator's address", DEADLINE, || second.address().map(Some))?;
    prometheus.scrape(&[first, address])?;
    prometheus.fires("MacvtapOperatorManyLeaders", None)?;
    second.terminate()?;
    prometheus.clears("MacvtapOperatorManyLeaders", None)?;

    scene.api.replace(&denial())?;
    let binding = json!({"policyName": "deny", "validationActions": ["Deny"]});
    scene.api.replace(&admission("ValidatingAdmissionPolicyBinding", &binding))?;
    let state = json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeState",
        "metadata": {"name": "n2"}, "spec": {"configHash": "h", "pools": []},
    });
    // A policy takes effect a moment after it was created.
    wait::until("the policy to deny writes", DEADLINE, || {
        let denied = scene.api.create_dry(&state);
        Ok(denied
            .is_err_and(|error| format!("{error:#}").contains("ValidatingAdmissionPolicy"))
            .then_some(()))
    })?;
    for node in 2..9 {
        scene.node(&format!("n{node}"), &json!({}))?;
    }
    prometheus.fires("MacvtapOperatorReconcileFailing", None)?;
    prometheus.fires("MacvtapOperatorApiRequestsFailing", None)?;
    scene.api.kubectl.run(&[
        "delete",
        "validatingadmissionpolicybinding,validatingadmissionpolicy",
        "deny",
    ])?;
    prometheus.clears("MacvtapOperatorReconcileFailing", None)?;
    prometheus.clears("MacvtapOperatorApiRequestsFailing", None)
}

fn admission(kind: &str, spec: &Value) -> Value {
    let version = "admissionregistration.k8s.io/v1";
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "deny"}, "spec": spec})
}

/// Denies every write of a node state.
fn denial() -> Value {
    let rule = json!({
        "apiGroups": ["macvtap.network.kubevirt.io"], "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"], "resources": ["macvtapnodestates"],
    });
    let validation = json!({"expression": "false", "reason": "Forbidden", "message": "denied by the test"});
    let spec = json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]});
    admission("ValidatingAdmissionPolicy", &spec)
}

#[test]
fn an_object_that_cannot_be_read_raises_an_alert() -> Result<()> {
    let (scene, prometheus) = observed(&["n1"])?;
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"type": "object", "properties": {"spec": anything, "status": anything}});
    let place = "/spec/versions/0/schema/openAPIV3Schema";
    let patch = json!([{"op": "replace", "path": place, "value": schema}]).to_string();
    let crd = "macvtapresourcepools.macvtap.network.kubevirt.io";
    scene.api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", &patch])?;
    wait::until("the loose schema", DEADLINE, || scene.pool("odd", &json!({"links": 7})).map(Some))?;
    prometheus.fires("MacvtapObjectUnreadable", None)?;
    scene.api.kubectl.run(&["delete", "mrp", "odd"])?;
    prometheus.clears("MacvtapObjectUnreadable", None)
}

#[test]
fn the_queries_of_the_dashboard_about_pools_and_operator_return_data() -> Result<()> {
    let (scene, prometheus) = observed(&["n1"])?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer("n1", 1)?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    let text =
        std::fs::read_to_string(Checkout::here().path("charts/macvtap-operator/files/dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut asked = 0;
    for query in targets.filter_map(|target| target["expr"].as_str()) {
        // Series that begin with the first failure, and those of agents, which do not run here.
        let absent = ["reconcile_failures", "watch_errors", "unreadable_objects"];
        if absent.iter().any(|name| query.contains(name)) || !query.contains("macvtap_operator_") {
            continue;
        }
        let query = query.replace("$pool", ".*").replace("[5m]", "[10s]").replace("[10m]", "[10s]");
        wait::until(&format!("data of {query}"), DEADLINE, || {
            Ok((prometheus.series(&query)? > 0).then_some(()))
        })?;
        asked += 1;
    }
    ensure!(asked >= 12, "only {asked} queries were found");
    Ok(())
}

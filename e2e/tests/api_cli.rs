//! `kubectl macvtap` and a real API server with the real operator: ten faults, each named with its reason and remedy.

#![allow(clippy::print_stdout, reason = "what the program printed of each fault is the result of this test")]

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use e2e::layout::Checkout;
use scene::{DEADLINE, Scene, condition};
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};

/// Name of the package and its program.
const PROGRAM: &str = "kubectl-macvtap";

/// The resource of pool `dp`.
const RESOURCE: &str = "macvtap.network.kubevirt.io/dp";

fn run(scene: &Scene, args: &[&str]) -> Result<Output> {
    api::build(&Checkout::here(), PROGRAM)?;
    let mut command = Command::new(Checkout::here().path("target/debug").join(PROGRAM));
    command.env("KUBECONFIG", scene.api.kubectl.kubeconfig()).args(args).stdin(Stdio::null());
    command.output().context("run kubectl-macvtap")
}

/// Its report as JSON, and its exit code.
fn report(scene: &Scene, args: &[&str]) -> Result<(Value, Option<i32>)> {
    let output = run(scene, &[args, &["-o", "json"]].concat())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text);
    let report = report
        .with_context(|| format!("{args:?} printed {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((report, output.status.code()))
}

/// The command names the reason with a remedy, with these words in its fact, and fails.
fn names(scene: &Scene, fault: &str, args: &[&str], reason: &str, words: &str) -> Result<()> {
    let code = mentions(scene, fault, args, ("Failed", reason), words)?;
    ensure!(code == Some(1), "{fault}: {args:?} ended with {code:?}");
    Ok(())
}

/// The command names the reason at a level with a remedy, with these words in its fact; returns its exit code.
fn mentions(
    scene: &Scene,
    fault: &str,
    args: &[&str],
    (level, reason): (&str, &str),
    words: &str,
) -> Result<Option<i32>> {
    let (report, code) = report(scene, args)?;
    let sections = report["sections"].as_array().into_iter().flatten();
    let mut all = sections.flat_map(|section| section["diagnostics"].as_array().into_iter().flatten());
    let is_it = |found: &&Value| {
        found["reason"] == reason
            && found["level"] == level
            && found["fact"].as_str().is_some_and(|fact| fact.contains(words))
    };
    let found = all
        .find(is_it)
        .with_context(|| format!("{fault}: {args:?} does not name {reason} ({words}): {report:#}"))?;
    ensure!(found["remedy"].is_string() && found["see"].is_string(), "{fault}: no remedy or place: {found}");
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    let (fact, remedy) = (format!("{} (`{reason}`)", text("fact")), text("remedy"));
    let command = format!("`{}`", args.join(" "));
    println!("| {fault} | {command} | {fact} | {remedy} |");
    // The objects in the table are those of this test.
    let page = std::fs::read_to_string(Checkout::here().path("docs/cli.md"))?;
    let cells = |line: &str| {
        line.starts_with(&format!("| {fault} | "))
            && [&command, &fact, remedy].into_iter().all(|cell| line.contains(cell))
    };
    ensure!(page.lines().any(cells), "docs/cli.md does not describe {fault}: {command}: {fact}; {remedy}");
    Ok(code)
}

/// Answers for the agent of n1, with these links, and these conditions of the node and of every pool.
fn answer(scene: &Scene, links: &Value, of_node: &Value, of_pools: &Value) -> Result<()> {
    let state = scene.api.kubectl.get("", "mns/n1")?;
    let entries = state.pointer("/spec/pools").and_then(Value::as_array).cloned().unwrap_or_default();
    let held = |name: &Value| -> Vec<Value> {
        let links = links.as_array().into_iter().flatten();
        let of_pool = links.filter(|link| link["pools"].as_array().is_some_and(|pools| pools.contains(name)));
        of_pool.map(|link| link["name"].clone()).collect()
    };
    let pools: Vec<Value> = entries
        .iter()
        .map(|pool| {
            let held = held(&pool["name"]);
            let devices = held.len() * 50;
            json!({
                "name": pool["name"], "generation": pool["generation"], "links": held,
                "capacity": devices, "allocatable": devices, "conditions": of_pools,
            })
        })
        .collect();
    let status = json!({
        "observedHash": state["spec"]["configHash"], "agentVersion": "test", "links": links, "pools": pools,
        "conditions": of_node,
    });
    scene.api.patch_status("mns/n1", &status)
}

/// A condition Ready that is False, as an agent writes it.
fn unready(reason: &str, message: &str) -> Value {
    let mut condition = condition("Ready", "False", reason);
    condition["message"] = message.into();
    condition
}

fn link(name: &str, pools: &Value) -> Value {
    json!({"name": name, "kind": "Physical", "carrier": true, "mtu": 1500, "pools": pools})
}

fn sick(name: &str, pools: &Value, reason: &str, message: &str) -> Value {
    json!({"name": name, "kind": "Physical", "carrier": false, "pools": pools, "reason": reason, "message": message})
}

/// A cluster with pool `dp` on link dp0 of n1, whose agent runs, where nothing is wrong but that no chart installed it.
fn well() -> Result<Scene> {
    let scene = Scene::new(&["n1"], true)?;
    scene.agent("n1", true)?;
    scene.pool("dp", &json!({"networks": [{"name": "net", "namespaces": {"names": ["default"]}}]}))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    answer(&scene, &json!([link("dp0", &json!(["dp"])), link("eth1", &json!([]))]), &json!([]), &json!([]))?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    // Another controller makes the networks.
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    let listed = json!({RESOURCE: "50"});
    scene.api.patch_status("node/n1", &json!({"capacity": listed, "allocatable": listed}))?;
    Ok(scene)
}

#[test]
fn what_is_well_is_reported_so() -> Result<()> {
    let scene = well()?;
    for args in [["explain", "pool", "dp"], ["explain", "node", "n1"], ["explain", "link", "dp0"]] {
        let (report, code) = report(&scene, &args)?;
        ensure!(code == Some(0), "{args:?}: {report:#}");
    }
    let status = String::from_utf8(run(&scene, &["status"])?.stdout)?;
    ensure!(status.contains("dp0") && status.contains(RESOURCE) && !status.contains('\x1b'), "{status}");
    println!("{status}");
    let (before, _) = report(&scene, &["check", "--pre"])?;
    ensure!(before["sections"].to_string().contains("you may install everything"), "{before:#}");
    Ok(())
}

#[test]
fn faults_of_nodes_and_links_are_named() -> Result<()> {
    let scene = well()?;
    let held = json!(["dp"]);
    let wrong = unready(
        "NoOtherPlugin",
        "no other CNI plugin is in /opt/cni/bin: the runtime reads another directory, most likely; set agent.cniBinDir to it",
    );
    answer(&scene, &json!([link("dp0", &held)]), &json!([wrong]), &json!([]))?;
    names(&scene, "wrong CNI directory", &["check"], "NoOtherPlugin", "node n1")?;
    names(&scene, "wrong CNI directory", &["explain", "node", "n1"], "NoOtherPlugin", "node n1")?;

    let lacking = sick(
        "dp0",
        &json!([]),
        "KernelWithoutMacvtap",
        "no macvtap can be made on dp0: the kernel has no macvtap; install its module (`modprobe macvtap`)",
    );
    let empty = unready("NoMatchingLink", "dp0 (KernelWithoutMacvtap)");
    answer(&scene, &json!([lacking]), &json!([]), &json!([empty]))?;
    names(&scene, "no macvtap module", &["check"], "KernelWithoutMacvtap", "the kernel has no macvtap")?;

    let down = sick("dp0", &held, "AdminDown", "dp0 is switched off; `ip link set dp0 up`");
    let unhealthy = unready("NoHealthyLink", "unhealthy: dp0");
    answer(&scene, &json!([down]), &json!([]), &json!([unhealthy]))?;
    names(&scene, "lower link down", &["check"], "AdminDown", "link dp0 of pool dp")?;
    names(&scene, "lower link down", &["explain", "link", "dp0"], "AdminDown", "dp0 is switched off")?;

    scene.api.kubectl.run(&["delete", "pod", "agent-n1", "--force", "--grace-period=0"])?;
    names(&scene, "agent not running", &["check"], "AgentNotRunning", "node n1 has no agent pod")?;
    names(&scene, "agent not running", &["explain", "node", "n1"], "AgentNotRunning", "node n1")
}

#[test]
fn faults_of_pools_are_named() -> Result<()> {
    let scene = well()?;
    scene.pool("later", &json!({"resourceName": "dp", "links": [{"names": ["eth1"]}]}))?;
    scene.says("later", "Accepted", "False", "ResourceNameConflict")?;
    names(&scene, "conflicting pool", &["check"], "ResourceNameConflict", "pool later")?;
    names(
        &scene,
        "conflicting pool",
        &["explain", "pool", "later"],
        "ResourceNameConflict",
        "belongs to pool dp",
    )?;
    scene.api.kubectl.run(&["delete", "mrp", "later"])?;

    scene.pool("typo", &json!({"links": [{"names": ["etch1"]}]}))?;
    scene.expect_pools("n1", &[("dp", "Active"), ("typo", "Active")])?;
    let empty = unready(
        "NoMatchingLink",
        "no link of this node matches; `macvtap-node-agent links` lists every link with the reason",
    );
    answer(&scene, &json!([link("eth1", &json!([]))]), &json!([]), &json!([empty]))?;
    scene.says("typo", "Ready", "False", "NoMatchingLinks")?;
    let hint = "pool typo on node n1: no link of this node matches";
    names(&scene, "wrong link name", &["check"], "NoMatchingLink", hint)?;
    names(&scene, "wrong link name", &["explain", "pool", "typo"], "NoMatchingLink", hint)?;
    names(&scene, "wrong link name", &["explain", "link", "etch1"], "LinkUnknown", "no node reports")
}

#[test]
fn faults_of_networks_and_quotas_are_named() -> Result<()> {
    let scene = well()?;
    let mut bare = scene::foreign("default", "bare");
    bare["spec"]["config"] = "{\"type\": \"macvtap\"}".into();
    scene.api.replace(&bare)?;
    let pod = |name: &str, network: &str, limits: &Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "annotations": {"k8s.v1.cni.cncf.io/networks": network}},
            "spec": {
                "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "none", "resources": {"limits": limits}}],
            },
        })
    };
    scene.api.create(&pod("bare", "bare", &json!({RESOURCE: 1})))?;
    names(&scene, "NAD without annotation", &["check"], "NoResourceName", "network default/bare")?;
    names(
        &scene,
        "NAD without annotation",
        &["explain", "pod", "bare"],
        "NoResourceName",
        "its pods have no device",
    )?;
    scene.api.create(&pod("greedy", "net", &json!({})))?;
    names(
        &scene,
        "limit forgotten",
        &["explain", "pod", "greedy"],
        "ResourceNotRequested",
        "its networks need 1",
    )?;

    let key = format!("requests.{RESOURCE}");
    scene.api.replace(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "devices", "namespace": "default"},
        "spec": {"hard": {&key: "1"}},
    }))?;
    // No controller counts here.
    let patch = json!({"status": {"hard": {&key: "1"}, "used": {&key: "1"}}}).to_string();
    let args = ["patch", "resourcequota/devices", "--subresource=status", "--type=merge", "-p", &patch];
    scene.api.kubectl.run(&args)?;
    // The API server's own copy of the quota is a moment behind.
    e2e::wait::until("the quota to refuse a pod", DEADLINE, || {
        let refused = scene.api.create_dry(&pod("refused", "net", &json!({RESOURCE: 1})));
        Ok(refused.is_err_and(|error| format!("{error:#}").contains("exceeded quota")).then_some(()))
    })?;
    // That it refuses a pod is what a quota is for: a failure of the pod, not of the cluster.
    mentions(&scene, "quota", &["check"], ("Warning", "QuotaReached"), "quota default/devices: 1 of 1")?;
    names(&scene, "quota", &["explain", "pod", "refused"], "QuotaReached", "quota default/devices: 1 of 1")
}

#[test]
fn kinds_that_are_missing_are_named() -> Result<()> {
    let scene = Scene::new(&["n1"], false)?;
    names(&scene, "no Multus", &["check"], "NADKindMissing", "Multus is not installed")?;
    names(&scene, "no Multus", &["check", "--pre"], "NADKindMissing", "Multus is not installed")?;
    let kind = "macvtapresourcepools.macvtap.network.kubevirt.io";
    scene.api.kubectl.run(&["delete", "crd", kind])?;
    names(&scene, "missing CRD", &["check"], "CRDMissing", kind)?;
    names(&scene, "missing CRD", &["explain", "pool", "dp"], "CRDMissing", kind)
}

#[test]
fn resources_of_former_pools_are_removed_from_nodes() -> Result<()> {
    let scene = well()?;
    let old = "macvtap.network.kubevirt.io/old";
    let listed = json!({RESOURCE: "50", old: "0"});
    scene.api.patch_status("node/n1", &json!({"capacity": listed, "allocatable": listed}))?;
    let dry = String::from_utf8(run(&scene, &["prune", "--dry-run"])?.stdout)?;
    ensure!(dry.contains(&format!("node n1: would remove {old}")), "{dry}");
    let output = run(&scene, &["prune"])?;
    ensure!(output.status.success(), "{output:?}");
    let status = scene.api.kubectl.get("", "node/n1")?["status"].clone();
    for list in ["capacity", "allocatable"] {
        ensure!(status[list].get(old).is_none() && status[list][RESOURCE] == "50", "{status}");
    }
    Ok(())
}

#[test]
fn a_plan_is_what_the_agent_would_do_and_stores_nothing() -> Result<()> {
    let scene = well()?;
    let pool = |name: &str, spec: &Value| {
        json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapResourcePool",
            "metadata": {"name": name}, "spec": spec,
        })
    };
    let file = scene.api.kubectl.kubeconfig().with_file_name("pool.yaml");
    let path = file.to_str().context("a path")?;
    let plan = |pool: &Value| -> Result<String> {
        std::fs::write(&file, pool.to_string())?;
        Ok(String::from_utf8(run(&scene, &["plan", "-f", path])?.stdout)?)
    };
    let text =
        plan(&pool("wide", &json!({"links": [{"names": ["eth1", "dp0"]}], "capacity": {"perLink": 7}})))?;
    println!("{text}");
    ensure!(text.contains("the API server would accept pool wide"), "{text}");
    ensure!(
        text.contains("pool wide takes eth1: 7 devices") && text.contains("pool dp has dp0 (LostToPool)"),
        "{text}"
    );
    let text = plan(&pool("first", &json!({"links": [{"names": ["dp0"]}], "priority": 9})))?;
    println!("{text}");
    ensure!(text.contains("pools that lose links: dp"), "{text}");
    let text = plan(&pool("wrong", &json!({"links": [{}]})))?;
    ensure!(text.contains("the API server refuses pool wrong"), "{text}");
    let pools = scene.api.kubectl.run(&["get", "mrp", "-o", "name"])?;
    ensure!(pools.lines().count() == 1, "{pools}");
    Ok(())
}

#[test]
fn an_archive_for_a_bug_report_holds_no_secret() -> Result<()> {
    let scene = well()?;
    let mut network = scene::foreign("default", "keeps");
    network["spec"]["config"] =
        r#"{"type": "macvtap", "ipam": {"type": "x", "password": "hush-hush"}}"#.into();
    scene.api.replace(&network)?;
    let archive = scene.api.kubectl.kubeconfig().with_file_name("dump.tar.gz");
    let path = archive.to_str().context("a path")?;
    let output = run(&scene, &["sysdump", "-f", path])?;
    ensure!(output.status.success(), "{output:?}");
    let all = e2e::process::output(Command::new("tar").args(["-xzOf", path]))?;
    for wanted in
        ["macvtapnodestates", "kind: NetworkAttachmentDefinition", "name: keeps", "no operator is installed"]
    {
        ensure!(all.contains(wanted), "{wanted} is not in the archive");
    }
    ensure!(!all.contains("hush-hush") && all.contains("REDACTED"), "the password is in the archive");
    Ok(())
}

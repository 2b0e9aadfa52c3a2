//! The rights that the chart gives are enough and not too many.

use crate::api::chart::{NAMESPACE, install, refused};
use crate::api::{Api, Program};
use anyhow::{Result, ensure};
use e2e::layout::Checkout;
use e2e::{Kubectl, process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// An operator that shares from the first node on.
const ARGS: [&str; 6] = ["--listen", "127.0.0.1:0", "--namespace", NAMESPACE, "--share-configs-from", "1"];

/// kubectl with the token of a service account, bound to a node if one is given.
fn account(api: &Api, account: &str, node: Option<&str>) -> Result<Kubectl> {
    let mut args = vec!["-n", NAMESPACE, "create", "token", account];
    if let Some(node) = node {
        args.extend(["--bound-object-kind=Node", "--bound-object-name", node]);
    }
    let token = api.kubectl.run(&args)?;
    let text = api.kubectl.run(&["config", "view", "--raw", "-o", "json"])?;
    let mut config: Value = serde_json::from_str(&text)?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = api.kubectl.kubeconfig().with_file_name(format!("{account}-{}", node.unwrap_or("none")));
    std::fs::write(&path, config.to_string())?;
    Ok(Kubectl::new(&Checkout::here(), &path))
}

fn node(api: &Api, name: &str) -> Result<()> {
    api.replace(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
}

fn state(api: &Api, name: &str) -> Result<()> {
    api.replace(&json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapNodeState",
        "metadata": {"name": name},
        "spec": {"configHash": "sha256:0", "pools": []},
    }))
}

/// Writes a status without reading it first, as the agent does: kubectl can only do so by applying it.
fn report(agent: &Kubectl, node: &str) -> Result<String> {
    let state = json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapNodeState",
        "metadata": {"name": node},
        "status": {"agentVersion": "test"},
    });
    let args = ["apply", "--server-side", "--subresource=status", "-f", "-"];
    process::output_with_input(agent.command().args(args), &state.to_string())
}

#[test]
fn an_agent_reports_for_its_own_node_and_may_do_nothing_else() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    for name in ["n1", "n2"] {
        node(&api, name)?;
        state(&api, name)?;
    }
    let agent = account(&api, "macvtap-node-agent", Some("n1"))?;
    e2e::wait::until("the fence and the rights", DEADLINE, || report(&agent, "n1").map(Some))?;
    // The policy takes effect a moment after it is stored.
    e2e::wait::until("the fence", DEADLINE, || {
        refused(report(&agent, "n2"), "an agent may write the state of its own node only").map(Some)
    })?;
    refused(report(&agent, "n2"), "its token is for node n1, the object for n2")?;
    let stolen = account(&api, "macvtap-node-agent", None)?;
    refused(report(&stolen, "n1"), "its token is for no node")?;

    agent.run(&["get", "mns", "n1"])?;
    let spec = r#"{"spec": {"configHash": "mine"}}"#;
    refused(agent.run(&["patch", "mns", "n1", "--type=merge", "-p", spec]), "Forbidden")?;
    refused(agent.run(&["delete", "mns", "n1"]), "Forbidden")?;
    for resource in ["nodes", "pods", "secrets", "configmaps", "namespaces", "mrp"] {
        refused(agent.run(&["get", resource, "-A"]), "Forbidden")?;
    }
    Ok(())
}

#[test]
fn the_operator_works_with_the_rights_the_chart_gives_it() -> Result<()> {
    let api = Api::without_crds()?;
    api.kubectl.apply(include_str!("network-kind.yaml"))?;
    install(&api, &[])?;
    // A kind that is new is refused for a moment, which the operator's log would say.
    e2e::wait::until("the kinds to be listed", DEADLINE, || {
        api.kubectl.run(&["get", "mrp,mns,network-attachment-definitions.k8s.cni.cncf.io", "-A"]).map(Some)
    })?;
    node(&api, "n1")?;
    let operator = account(&api, "macvtap-operator", None)?;
    let running = Program::start("macvtap-operator", &ARGS, operator.kubeconfig())?;
    api.replace(&json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapResourcePool",
        "metadata": {"name": "dp"},
        "spec": {
            "links": [{"names": ["dp0"]}],
            "networks": [{"name": "net", "namespaces": {"names": ["default"]}}],
        },
    }))?;
    let network = "network-attachment-definitions.k8s.cni.cncf.io/net";
    api.kubectl.wait_until("default", network, DEADLINE, |_| Some(()))?;
    api.kubectl.wait_until("", "mns/n1", DEADLINE, |state| state.pointer("/spec/pools/0/name").cloned())?;
    let status =
        api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| pool.pointer("/status/resource").cloned())?;
    assert_eq!(status, "macvtap.network.kubevirt.io/dp");
    e2e::wait::until("an event", DEADLINE, || {
        let events = api.kubectl.run(&["get", "events", "-A", "-o", "name"])?;
        Ok((!events.trim().is_empty()).then_some(()))
    })?;
    // What is repaired twice is one event that happened twice, hence a patch.
    let edit = r#"{"spec": {"config": "{}"}}"#;
    for count in ["1", "2"] {
        api.kubectl.run(&["patch", network, "--type=merge", "-p", edit])?;
        api.kubectl.wait_until("default", network, DEADLINE, |network| {
            network["spec"]["config"].as_str()?.contains("macvtap").then_some(())
        })?;
        e2e::wait::until("the event of a repair", DEADLINE, || {
            let field = "jsonpath={range .items[?(@.reason=='NetworkRepaired')]}{.series.count}{end}";
            let series = api.kubectl.run(&["get", "events", "-A", "-o", field])?;
            let expected = if count == "1" { "" } else { count };
            let all = api.kubectl.run(&[
                "get",
                "events",
                "-A",
                "--field-selector=reason=NetworkRepaired",
                "-o",
                "name",
            ])?;
            Ok((!all.trim().is_empty() && series == expected).then_some(()))
        })?;
    }
    shares(&api, &operator)?;
    unreadable(&api, "dp")?;
    remove(&api, "dp")?;
    // The lease is renewed a moment after it was made.
    e2e::wait::until("every right to be used", DEADLINE, || {
        exactly_what_is_called(&api, "macvtap-operator").map(Some)
    })?;
    let log = running.log();
    // A new schema ends the watches of its kind, sometimes in the middle of an answer.
    let bad = ["orbidden", "not published", "failed"];
    let mut lines = log.lines().filter(|line| !line.contains("interrupted"));
    ensure!(!lines.any(|line| bad.iter().any(|bad| line.contains(bad))), "the operator's log: {log}");
    refused(operator.run(&["get", "secrets", "-A"]), "Forbidden")?;
    refused(operator.run(&["patch", "node", "n1", "--type=merge", "-p", "{}"]), "Forbidden")?;
    refused(operator.run(&["delete", "mrp", "dp"]), "Forbidden")
}

/// Lets the operator write a configuration that node states share, and another one read it.
fn shares(api: &Api, operator: &Kubectl) -> Result<()> {
    answer(api)?;
    // An edit that the operator sees before that status is written as it was.
    let mut mtu = 1400;
    let name = e2e::wait::until("a configuration", DEADLINE, || {
        mtu += 1;
        let edit = json!({"spec": {"macvtap": {"mtu": mtu}}}).to_string();
        api.kubectl.run(&["patch", "mrp", "dp", "--type=merge", "-p", &edit])?;
        let state = api.kubectl.get("", "mns/n1")?;
        Ok(state["spec"]["config"].as_str().map(str::to_owned))
    })?;
    let standby = Program::start("macvtap-operator", &ARGS, operator.kubeconfig())?;
    e2e::wait::until("another operator to be there", DEADLINE, || {
        Ok(standby.log().contains("standing by").then_some(()))
    })?;
    // Ten minutes after its last use the operator does so itself.
    operator.run(&["delete", "mnc", &name, "--wait=false"]).map(drop)
}

/// Answers as an agent that has applied the state of node n1.
fn answer(api: &Api) -> Result<()> {
    let state = api.kubectl.get("", "mns/n1")?;
    let (hash, generation) = (&state["spec"]["configHash"], &state["metadata"]["generation"]);
    let status = json!({"agentVersion": "0.2.0", "observedHash": hash, "observedGeneration": generation});
    api.patch_status("mns/n1", &status)
}

/// Deletes a pool, whose drain the agent answers.
fn remove(api: &Api, pool: &str) -> Result<()> {
    api.kubectl.run(&["delete", "mrp", pool, "--wait=false"])?;
    e2e::wait::until("the pool to be gone", DEADLINE, || {
        answer(api)?;
        Ok(api.kubectl.run(&["get", "mrp", "-o", "name"])?.trim().is_empty().then_some(()))
    })
}

/// Makes a pool one that the operator cannot read, and waits until it says so.
fn unreadable(api: &Api, pool: &str) -> Result<()> {
    let crd = "macvtapresourcepools.macvtap.network.kubevirt.io";
    let loose = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", loose])?;
    let odd = r#"{"spec": {"macvtap": {"mode": "Teleport"}}}"#;
    e2e::wait::until("the loose schema", DEADLINE, || {
        api.kubectl.run(&["patch", "mrp", pool, "--type=merge", "-p", odd]).map(Some)
    })?;
    api.kubectl.wait_until("", &format!("mrp/{pool}"), DEADLINE, |pool| {
        let conditions = pool.pointer("/status/conditions")?.as_array()?;
        conditions.iter().any(|condition| condition["reason"] == "NotReadable").then_some(())
    })
}

/// Compares the rights of an account with the requests in the server's audit log.
fn exactly_what_is_called(api: &Api, account: &str) -> Result<()> {
    let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
    let log = std::fs::read_to_string(api.kubectl.kubeconfig().with_file_name(e2e::AUDIT_LOG))?;
    let mut called = BTreeSet::new();
    for line in log.lines() {
        let event: Value = serde_json::from_str(line)?;
        let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        if text("/user/username") != user {
            continue;
        }
        let part = text("/objectRef/subresource");
        let part = if part.is_empty() { part } else { format!("/{part}") };
        called.insert((text("/objectRef/apiGroup"), text("/objectRef/resource") + &part, text("/verb")));
    }
    let mut granted = BTreeSet::new();
    let roles = [
        format!("clusterrole/release-{account}"),
        format!("role/{account}"),
        format!("role/{account}-agents"),
    ];
    for role in roles {
        let role = api.kubectl.get(NAMESPACE, &role)?;
        for rule in role["rules"].as_array().into_iter().flatten() {
            let words = |key: &str| -> Vec<String> {
                let list = rule[key].as_array().into_iter().flatten();
                list.filter_map(|word| Some(word.as_str()?.to_owned())).collect()
            };
            for group in words("apiGroups") {
                for resource in words("resources") {
                    for verb in words("verbs") {
                        granted.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    let unused: Vec<String> =
        granted.difference(&called).map(|(_, resource, verb)| format!("{verb} {resource}")).collect();
    ensure!(unused.is_empty(), "rights that nobody uses: {unused:?}");
    Ok(())
}

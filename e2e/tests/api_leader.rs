//! Several operators on one real API server: one leads, another takes over, and who cannot renew its lease stops.

mod api;
#[path = "api/relay.rs"]
mod relay;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use api::Program;
use relay::{Fault, Relay};
use scene::{DEADLINE, Scene};
use serde_json::{Value, json};
use std::time::Duration;

/// Within this time another operator leads.
const FAIL_OVER: Duration = Duration::from_secs(20);

/// Starts a further operator, with a log of its own.
fn another(scene: &Scene, name: &str, kubeconfig: Option<&Value>) -> Result<Program> {
    let admin = scene.api.kubectl.kubeconfig();
    let dir = admin.with_file_name(name);
    std::fs::create_dir_all(&dir)?;
    let own = dir.join("kubeconfig");
    match kubeconfig {
        Some(config) => std::fs::write(&own, config.to_string())?,
        None => drop(std::fs::copy(admin, &own)?),
    }
    let args = ["--listen", "127.0.0.1:0", "--identity", name, "--namespace", "default"];
    Program::start("macvtap-operator", &args, &own)
}

fn metric(operator: &Program, prefix: &str) -> Result<u64> {
    let text = operator.ask("/metrics")?;
    let values = text.lines().filter(|line| line.starts_with(prefix));
    values.map(|line| Ok(line.rsplit(' ').next().context("no value")?.parse::<u64>()?)).sum()
}

/// How many writes an operator sent, those of its lease apart (which it replaces).
fn writes(operator: &Program) -> Result<u64> {
    ["PATCH", "POST", "DELETE"]
        .into_iter()
        .map(|method| metric(operator, &format!("macvtap_operator_api_requests_total{{method=\"{method}\"")))
        .sum()
}

/// Waits until somebody whose name begins like this has the lease.
fn leads(scene: &Scene, name: &str, deadline: Duration) -> Result<()> {
    scene.api.kubectl.wait_until("default", "lease/macvtap-operator", deadline, |lease| {
        lease.pointer("/spec/holderIdentity")?.as_str()?.starts_with(name).then_some(())
    })
}

fn says(operator: &Program, path: &str, words: &str) -> Result<()> {
    e2e::wait::until(&format!("{path} to say {words}"), DEADLINE, || {
        let answer = operator.ask(path)?;
        ensure!(answer.contains(words), "{answer}");
        Ok(Some(()))
    })
}

#[test]
fn when_the_leader_dies_in_mid_rollout_the_standby_goes_on() -> Result<()> {
    let nodes = ["n1", "n2", "n3"];
    let mut scene = Scene::new(&[], false)?;
    for node in nodes {
        scene.node(node, &json!({}))?;
    }
    let first = scene.operator.take().context("no operator")?;
    let second = another(&scene, "second", None)?;
    says(&first, "/readyz", "leading")?;
    says(&second, "/readyz", "standing by")?;
    ensure!(second.ask("/readyz")?.starts_with("HTTP/1.1 200"), "a standby is ready");
    for node in nodes {
        scene.expect_pools(node, &[])?;
        scene.answer(node, 0)?;
    }
    let staged = json!({"rollout": {"type": "Staged", "staged": {"batch": 1}}});
    scene.pool("dp", &staged)?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    assert_eq!(writes(&second)?, 0, "a standby writes nothing");
    drop(first);
    leads(&scene, "second", FAIL_OVER)?;
    ensure!(scene.spec_of("n2")? == json!([]), "n2 was told before n1 answered");
    for node in nodes {
        scene.expect_pools(node, &[("dp", "Active")])?;
        scene.answer(node, 0)?;
    }
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    ensure!(metric(&second, "macvtap_operator_leading")? == 1, "{}", second.ask("/metrics")?);
    ensure!(metric(&second, "macvtap_operator_pool_nodes{pool=\"dp\",state=\"ready\"}")? == 3);
    Ok(())
}

#[test]
fn an_operator_that_is_asked_to_end_hands_over_at_once() -> Result<()> {
    let mut scene = Scene::new(&["n1"], false)?;
    let first = scene.operator.take().context("no operator")?;
    scene.expect_pools("n1", &[])?;
    let second = another(&scene, "second", None)?;
    says(&second, "/readyz", "standing by")?;
    assert_eq!(first.terminate()?, Some(0));
    // Sooner than the lease would have run out.
    leads(&scene, "second", Duration::from_secs(8))?;
    scene.pool("dp", &json!({}))?;
    scene.expect_pools("n1", &[("dp", "Active")])
}

#[test]
fn a_leader_that_cannot_renew_its_lease_stops_writing() -> Result<()> {
    let mut scene = Scene::new(&["n1"], false)?;
    scene.expect_pools("n1", &[])?;
    assert_eq!(scene.operator.take().context("no operator")?.terminate()?, Some(0));
    let limited = limited_account(&scene)?;
    let cut_off = another(&scene, "cut-off", Some(&limited))?;
    leads(&scene, "cut-off", DEADLINE)?;
    says(&cut_off, "/readyz", "leading")?;
    scene.pool("first", &json!({}))?;
    scene.says("first", "Accepted", "True", "Valid")?;

    scene.api.kubectl.run(&["delete", "rolebinding", "leases"])?;
    says(&cut_off, "/metrics", "macvtap_operator_leading 0")?;
    let before = writes(&cut_off)?;
    scene.pool("second", &json!({}))?;
    let heir = another(&scene, "heir", None)?;
    leads(&scene, "heir", FAIL_OVER)?;
    scene.says("second", "Accepted", "True", "Valid")?;
    assert_eq!(writes(&cut_off)?, before, "it wrote after it had lost the lease");
    says(&cut_off, "/livez", "alive")?;

    // With its rights back it is a standby like any other.
    scene.api.kubectl.run(&LEASES_BINDING)?;
    says(&cut_off, "/readyz", "standing by")?;
    assert_eq!(heir.terminate()?, Some(0));
    leads(&scene, "cut-off", DEADLINE)
}

#[test]
fn a_leader_whose_connection_is_cut_makes_room_and_comes_back_as_a_standby() -> Result<()> {
    behind_a_relay(Fault::Cut)
}

#[test]
fn a_leader_whose_connection_leads_nowhere_makes_room_and_comes_back_as_a_standby() -> Result<()> {
    behind_a_relay(Fault::Swallow)
}

/// A leader keeps all its rights, but what it sends does not arrive, and it hears nothing.
fn behind_a_relay(fault: Fault) -> Result<()> {
    let mut scene = Scene::new(&["n1"], false)?;
    scene.expect_pools("n1", &[])?;
    assert_eq!(scene.operator.take().context("no operator")?.terminate()?, Some(0));
    let mut config = limited_account(&scene)?;
    let server = config["clusters"][0]["cluster"]["server"].as_str().context("no server")?;
    let relay = Relay::new(server.rsplit(':').next().context("no port")?.parse()?)?;
    config["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{}", relay.port));
    let far = another(&scene, "far", Some(&config))?;
    leads(&scene, "far", DEADLINE)?;
    scene.pool("first", &json!({}))?;
    scene.says("first", "Accepted", "True", "Valid")?;
    let near = another(&scene, "near", None)?;
    says(&near, "/readyz", "standing by")?;

    relay.set(fault);
    leads(&scene, "near", FAIL_OVER)?;
    says(&far, "/metrics", "macvtap_operator_leading 0")?;
    let (sent, arrived) = (writes(&far)?, audited_writes(&scene)?);
    ensure!(arrived > 0, "the audit log knows nothing of the first leader");
    scene.pool("second", &json!({}))?;
    scene.says("second", "Accepted", "True", "Valid")?;

    relay.set(Fault::None);
    e2e::wait::until("the first leader to see who leads", DEADLINE, || {
        Ok(far.log().contains("standing by, near").then_some(()))
    })?;
    says(&far, "/readyz", "standing by")?;
    assert_eq!(writes(&far)?, sent, "it sent something after it had lost the lease");
    assert_eq!(audited_writes(&scene)?, arrived, "it wrote something after it had lost the lease");

    // While it was away it heard nothing of the second pool. It must not lead with what it knew before.
    scene.expect_pools("n1", &[("first", "Active"), ("second", "Active")])?;
    let generation = |state: &Value| state["metadata"]["generation"].as_i64();
    let before = scene.api.kubectl.wait_until("", "mns/n1", DEADLINE, generation)?;
    assert_eq!(near.terminate()?, Some(0));
    leads(&scene, "far", DEADLINE)?;
    scene.pool("third", &json!({}))?;
    scene.expect_pools("n1", &[("first", "Active"), ("second", "Active"), ("third", "Active")])?;
    let after = scene.api.kubectl.wait_until("", "mns/n1", DEADLINE, generation)?;
    assert_eq!(after, before + 1, "it wrote what had been true before it was cut off");
    Ok(())
}

/// How many writes of the account of [`limited_account`] the API server has answered, those of leases apart.
fn audited_writes(scene: &Scene) -> Result<usize> {
    let log = std::fs::read_to_string(scene.api.kubectl.kubeconfig().with_file_name(e2e::AUDIT_LOG))?;
    let mut count = 0;
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line)?;
        let reads = ["get", "list", "watch"].iter().any(|verb| entry["verb"] == *verb);
        let lease = entry["objectRef"]["resource"] == "leases";
        let ours = entry["user"]["username"] == "system:serviceaccount:default:limited";
        count += usize::from(ours && !reads && !lease);
    }
    Ok(count)
}

const LEASES_BINDING: [&str; 5] =
    ["create", "rolebinding", "leases", "--clusterrole=leases", "--serviceaccount=default:limited"];

/// A kubeconfig for an account that may do everything, leases only by a binding of their own.
fn limited_account(scene: &Scene) -> Result<Value> {
    let kubectl = &scene.api.kubectl;
    let rule = |groups: &[&str]| json!([{"apiGroups": groups, "resources": ["*"], "verbs": ["*"]}]);
    let groups = ["", "events.k8s.io", "macvtap.network.kubevirt.io", "k8s.cni.cncf.io"];
    for (name, rules) in [("limited", rule(&groups)), ("leases", rule(&["coordination.k8s.io"]))] {
        scene.api.replace(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        }))?;
    }
    kubectl.run(&["create", "serviceaccount", "limited"])?;
    let account = "--serviceaccount=default:limited";
    kubectl.run(&["create", "clusterrolebinding", "limited", "--clusterrole=limited", account])?;
    kubectl.run(&LEASES_BINDING)?;
    let token = kubectl.run(&["create", "token", "limited"])?;
    let text = kubectl.run(&["config", "view", "--raw", "-o", "json"])?;
    let mut config: Value = serde_json::from_str(&text)?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    Ok(config)
}

//! The fence around agents is about the account that they run with, whatever the release and its namespace are called.

mod api;

use anyhow::{Context as _, Result, ensure};
use api::Api;
use e2e::layout::Checkout;
use e2e::process;
use std::process::Command;
use std::time::Duration;

#[test]
fn the_fence_and_the_rights_are_about_the_account_of_the_agents_daemonset() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    fenced(&api, "elsewhere")?;
    sees_pods(&api, "elsewhere", true)
}

#[test]
fn agents_may_be_in_a_namespace_of_their_own() -> Result<()> {
    let api = Api::without_crds()?;
    api.kubectl.run(&["create", "namespace", "agents"])?;
    install(&api, &["--set", "agent.namespace=agents"])?;
    fenced(&api, "agents")?;
    sees_pods(&api, "agents", true)?;
    sees_pods(&api, "elsewhere", false)?;
    let operator = api.kubectl.get("elsewhere", "deployment/macvtap-operator")?;
    let args = operator["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    ensure!(args.contains("\"--agent-namespace=agents\""), "{args}");
    Ok(())
}

/// Installs the chart into namespace `elsewhere`.
fn install(api: &Api, values: &[&str]) -> Result<()> {
    let checkout = Checkout::here();
    let home = checkout.artefacts().join("helm");
    let chart = checkout.path("charts/macvtap-operator");
    let mut helm = Command::new(checkout.bin().join("helm"));
    helm.env("HELM_CACHE_HOME", home.join("cache")).env("HELM_CONFIG_HOME", home.join("config"));
    helm.env("HELM_DATA_HOME", home.join("data")).env("KUBECONFIG", api.kubectl.kubeconfig());
    helm.args(["install", "fenced"]).arg(chart).args(["-n", "elsewhere", "--create-namespace"]).args(values);
    process::output(&mut helm).map(drop)
}

/// Whether the operator may follow the pods of a namespace.
fn sees_pods(api: &Api, namespace: &str, wanted: bool) -> Result<()> {
    let account = "--as=system:serviceaccount:elsewhere:macvtap-operator";
    e2e::wait::until("the operator's rights", Duration::from_secs(20), || {
        let allowed = api.kubectl.run(&["auth", "can-i", "watch", "pods", "-n", namespace, account]).is_ok();
        Ok((allowed == wanted).then_some(()))
    })
}

/// Whether policy and role are about the account with which agents run in this namespace.
fn fenced(api: &Api, namespace: &str) -> Result<()> {
    let sets = api.kubectl.get(namespace, "daemonsets")?;
    let [agent] = sets["items"].as_array().map_or(&[][..], Vec::as_slice) else {
        anyhow::bail!("not one DaemonSet: {sets}")
    };
    let account = agent.pointer("/spec/template/spec/serviceAccountName").and_then(|name| name.as_str());
    let account = account.context("the DaemonSet names no account")?;
    api.kubectl.get(namespace, &format!("serviceaccount/{account}"))?;

    let policies = api.kubectl.get("", "validatingadmissionpolicies")?;
    let conditions: Vec<&str> = policies["items"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|policy| {
            policy.pointer("/spec/matchConditions").and_then(|all| all.as_array()).into_iter().flatten()
        })
        .filter_map(|condition| condition["expression"].as_str())
        .collect();
    let user = format!("'system:serviceaccount:{namespace}:{account}'");
    ensure!(
        conditions.len() == 1 && conditions[0].contains(&user),
        "the policy is about {conditions:?}, not {user}"
    );

    let bindings = api.kubectl.get("", "clusterrolebindings")?;
    let bound = bindings["items"].as_array().into_iter().flatten().filter(|binding| {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        subjects.into_iter().any(|subject| subject["name"] == account && subject["namespace"] == namespace)
    });
    ensure!(bound.count() == 1, "account {account} is bound to not one role");
    Ok(())
}

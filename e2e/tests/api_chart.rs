//! The chart on a real API server: what it installs, and that the rights it gives are enough and not too many.

mod api;
#[path = "api/rights.rs"]
mod rights;

use anyhow::{Context as _, Result, ensure};
use api::Api;
use api::chart::{NAMESPACE, helm, install, refused, rendered};
use e2e::layout::Checkout;
use e2e::{process, release};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn the_policy_and_the_pods_have_the_same_account() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let set = api.kubectl.get(NAMESPACE, "daemonset/macvtap-node-agent")?;
    let account = set.pointer("/spec/template/spec/serviceAccountName").and_then(Value::as_str);
    let account = account.context("the agent has no account")?;
    let policy = api.kubectl.get("", "validatingadmissionpolicy/release-macvtap-node-fence")?;
    assert_eq!(
        policy["spec"]["matchConditions"][0]["expression"],
        format!("request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{account}'")
    );
    let binding = api.kubectl.get("", "clusterrolebinding/release-macvtap-node-agent")?;
    assert_eq!(binding["subjects"][0]["name"], account);
    Ok(())
}

#[test]
fn two_operators_share_one_name_and_a_budget() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let deployment = api.kubectl.get(NAMESPACE, "deployment/macvtap-operator")?["spec"].clone();
    assert_eq!(
        (&deployment["replicas"], &deployment["strategy"]["type"]),
        (&json!(2), &json!("RollingUpdate"))
    );
    let labels = &deployment["template"]["metadata"]["labels"];
    let budget = api.kubectl.get(NAMESPACE, "poddisruptionbudget/macvtap-operator")?["spec"].clone();
    let selector = budget["selector"]["matchLabels"].as_object().context("no selector")?.clone();
    ensure!(
        selector.iter().all(|(key, value)| &labels[key] == value),
        "{selector:?} does not select {labels}"
    );
    // The operator looks for agents by the labels their pods have.
    let args = deployment["template"]["spec"]["containers"][0]["args"].to_string();
    let agents = api.kubectl.get(NAMESPACE, "daemonset/macvtap-node-agent")?;
    let agents = &agents["spec"]["template"]["metadata"]["labels"];
    let selector = args.split("--agent-selector=").nth(1).and_then(|rest| rest.split('"').next());
    for pair in selector.context("no --agent-selector")?.split(',') {
        let (key, value) = pair.split_once('=').context("no label")?;
        assert_eq!(agents[key], value);
    }
    install(&api, &["operator.replicas=1"])?;
    refused(api.kubectl.get(NAMESPACE, "poddisruptionbudget/macvtap-operator"), "not found")
}

#[test]
fn the_manifest_of_a_release_is_applied_twice_and_deleted_as_the_documentation_says() -> Result<()> {
    let api = Api::without_crds()?;
    let checkout = Checkout::here();
    let chart = checkout.path("charts/macvtap-operator");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("install.yaml");
    std::fs::write(&file, release::manifest(&checkout, &chart, Some("registry.example"))?)?;
    let file = file.to_str().context("the path is not UTF-8")?;
    for _ in 0..2 {
        api.kubectl.run(&["apply", "--server-side", "-f", file])?;
    }
    for (workload, program) in [
        ("deployment/macvtap-operator", "macvtap-operator"),
        ("daemonset/macvtap-node-agent", "macvtap-node-agent"),
    ] {
        let image = api.kubectl.get(NAMESPACE, workload)?;
        let image = image.pointer("/spec/template/spec/containers/0/image").cloned();
        assert_eq!(image, Some(json!(format!("registry.example/{program}:{}", release::VERSION))));
    }
    // No controller ends the namespace here.
    api.kubectl.run(&["delete", "-f", file, "--wait=false"])?;
    let kinds = "clusterrole,clusterrolebinding,flowschema,validatingadmissionpolicy,validatingadmissionpolicybinding";
    let left = api.kubectl.run(&["get", kinds, "-o", "name"])?;
    let left: Vec<&str> = left.lines().filter(|name| name.contains("macvtap")).collect();
    ensure!(left.is_empty(), "{left:?} stays");
    Ok(())
}

#[test]
fn the_kinds_are_upgraded_with_the_release_and_outlive_it() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let crd = "macvtapresourcepools.macvtap.network.kubevirt.io";
    let old = r#"[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/priority"}]"#;
    api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", old])?;
    install(&api, &["logLevel=debug"])?;
    let explained = e2e::wait::until("the new schema", rights::DEADLINE, || {
        let crd = api.kubectl.get("", &format!("crd/{crd}"))?;
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/priority";
        Ok(crd.pointer(path).cloned())
    });
    explained?;
    helm(&api, &["uninstall", "release", "-n", NAMESPACE])?;
    api.kubectl.get("", &format!("crd/{crd}")).context("the kind went with the release")?;
    install(&api, &[]).context("install it again")?;
    Ok(())
}

#[test]
fn values_that_are_not_known_or_not_possible_are_refused() -> Result<()> {
    let api = Api::shared()?;
    refused(install(&api, &["operator.imag=x"]), "imag")?;
    refused(install(&api, &["imagePullPolicy=Sometimes"]), "imagePullPolicy")?;
    refused(install(&api, &["agent.cniBinDir=relative/path"]), "cniBinDir")?;
    refused(install(&api, &["agent.ehostDevice=ehost-device"]), "ehostDevice")?;
    refused(install(&api, &["operator.replicas=0"]), "replicas")
}

/// The arguments of an operator of release 0.1.0. A rollback starts it with the chart of a later release (docs/upgrade.md).
const KNOWN_TO_FIRST: [&str; 5] =
    ["--listen", "--log-format", "--log-level", "--agent-namespace", "--agent-selector"];

#[test]
fn an_argument_that_the_chart_sets_itself_is_refused_with_the_value_to_use() -> Result<()> {
    let api = Api::shared()?;
    let listen = ["operator.extraArgs={--listen=127.0.0.1:1}"];
    refused(
        install(&api, &listen),
        "operator.extraArgs: the chart sets --listen itself; it cannot be another",
    )?;
    refused(install(&api, &["operator.extraArgs={--log-level,debug}"]), "use logLevel")?;
    refused(install(&api, &["agent.extraArgs={--listen,[::]:1}"]), "use agent.listen")?;
    let path = Checkout::here().path("charts/macvtap-operator");
    let path = path.to_string_lossy();
    let further = "operator.extraArgs={--identity=a=b}";
    let rendered = helm(&api, &["template", "release", &path, "--kube-version=1.35.0", "--set", further])?;
    ensure!(rendered.contains("            - \"--identity=a=b\"\n          env:"), "{rendered}");
    // Every argument that a template sets is among those it refuses.
    for part in ["operator", "agent"] {
        let template = std::fs::read_to_string(format!("{path}/templates/{part}.yaml"))?;
        let set: BTreeSet<&str> = template
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- ")?.trim_matches('"').split_once('='))
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("--"))
            .collect();
        ensure!(set.len() >= 4, "{set:?}");
        let unknown = set.iter().find(|name| part == "operator" && !KNOWN_TO_FIRST.contains(*name));
        ensure!(unknown.is_none(), "an operator of the first release ends at {unknown:?}: use a variable");
        for name in set {
            let given = format!("{part}.extraArgs={{{name}=x}}");
            refused(
                helm(&api, &["template", "release", &path, "--kube-version=1.35.0", "--set", &given]),
                "sets",
            )?;
        }
    }
    Ok(())
}

#[test]
fn a_server_queues_the_lease_apart_from_the_writes_of_a_large_change() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let lease = api.kubectl.get("", "flowschema/release-macvtap-operator-lease")?["spec"].clone();
    let rest = api.kubectl.get("", "flowschema/release-macvtap")?["spec"].clone();
    assert_eq!(lease["priorityLevelConfiguration"]["name"], "leader-election");
    let level = rest["priorityLevelConfiguration"]["name"].as_str().context("no priority level")?;
    api.kubectl.get("", &format!("prioritylevelconfiguration/{level}"))?;
    ensure!(lease["matchingPrecedence"].as_i64() < rest["matchingPrecedence"].as_i64(), "{lease} {rest}");
    ensure!(!rendered(&api, &["flowControl.enabled=false"])?.contains("kind: FlowSchema"), "still there");
    Ok(())
}

#[test]
fn the_kinds_survive_a_gitops_tool_that_prunes() -> Result<()> {
    let api = Api::shared()?;
    let text = rendered(&api, &[])?;
    let crds = text.matches("kind: CustomResourceDefinition").count();
    for annotation in [
        "argocd.argoproj.io/sync-options: Delete=false,Prune=false",
        "kustomize.toolkit.fluxcd.io/prune: disabled",
    ] {
        assert_eq!(text.matches(annotation).count(), crds, "{annotation}");
    }
    Ok(())
}

#[test]
fn what_differs_between_platforms_is_a_value() -> Result<()> {
    let api = Api::shared()?;
    let default = rendered(&api, &[])?;
    for text in [
        "type: spc_t",
        "priorityClassName: system-node-critical",
        "values: [virtual-kubelet]",
        "path: /var/lib/kubelet/pod-resources, type: Directory}",
        "path: /var/lib/kubelet/device-plugins, type: Directory}",
        "mountPath: /var/run/netns",
    ] {
        ensure!(default.contains(text), "{text} is not in:\n{default}");
    }
    ensure!(!default.contains("SecurityContextConstraints"), "OpenShift's kind where it does not exist");
    let other = rendered(
        &api,
        &[
            "agent.seLinuxOptions=null",
            "agent.priorityClassName=",
            "operator.priorityClassName=mine",
            "agent.affinity.podAffinity.x=y",
            "openshift.securityContextConstraints=true",
        ],
    )?;
    for text in ["spc_t", "system-node-critical", "virtual-kubelet"] {
        ensure!(!other.contains(text), "{text} is in:\n{other}");
    }
    for text in
        ["priorityClassName: mine", "kind: SecurityContextConstraints", "system:openshift:scc:nonroot-v2"]
    {
        ensure!(other.contains(text), "{text} is not in:\n{other}");
    }
    Ok(())
}

#[test]
fn the_agent_is_not_privileged() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let pod = api.kubectl.get(NAMESPACE, "daemonset/macvtap-node-agent")?["spec"]["template"]["spec"].clone();
    assert_eq!(pod.get("hostPID"), None);
    let containers = [&pod["containers"], &pod["initContainers"]];
    for container in containers.iter().flat_map(|list| list.as_array().into_iter().flatten()) {
        let context = &container["securityContext"];
        ensure!(context.get("privileged").is_none_or(|privileged| privileged == false), "{container}");
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["allowPrivilegeEscalation"], false);
    }
    assert_eq!(
        pod["containers"][0]["securityContext"]["capabilities"]["add"],
        json!(["NET_ADMIN", "CHOWN", "MKNOD"])
    );
    Ok(())
}

#[test]
fn the_examples_are_taken_by_the_server() -> Result<()> {
    let api = Api::shared()?;
    let examples = Checkout::here().path("examples");
    let files = ["pools", "pods", "standalone"].map(|folder| std::fs::read_dir(examples.join(folder)));
    let mut checked = 0;
    for folder in files {
        for file in folder? {
            let path = file?.path();
            let text = std::fs::read_to_string(&path)?;
            // The kind of networks is Multus', and this server has none.
            if text.contains("kind: NetworkAttachmentDefinition") {
                continue;
            }
            let mut command = api.kubectl.command();
            // It refuses what kubectl create only warns of: keys that are there twice.
            process::output(command.args(["apply", "--server-side", "--dry-run=server", "-f"]).arg(&path))?;
            checked += 1;
        }
    }
    ensure!(checked >= 6, "only {checked} examples were found");
    Ok(())
}

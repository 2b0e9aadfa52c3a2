//! The chart on a real API server: what it installs, and that the rights it gives are enough and not too many.

mod api;

use anyhow::{Context as _, Result, ensure};
use api::chart::{NAMESPACE, helm, install, refused, rendered};
use api::{Api, Program};
use e2e::layout::Checkout;
use e2e::{Kubectl, process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

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
    api.kubectl.apply(include_str!("api/network-kind.yaml"))?;
    install(&api, &[])?;
    // A kind that is new is refused for a moment, which the operator's log would say.
    e2e::wait::until("the kinds to be listed", DEADLINE, || {
        api.kubectl.run(&["get", "mrp,mns,network-attachment-definitions.k8s.cni.cncf.io", "-A"]).map(Some)
    })?;
    node(&api, "n1")?;
    let operator = account(&api, "macvtap-operator", None)?;
    let args = ["--listen", "127.0.0.1:0", "--namespace", NAMESPACE];
    let running = Program::start("macvtap-operator", &args, operator.kubeconfig())?;
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
    unreadable(&api, "dp")?;
    api.kubectl.run(&["delete", "mrp", "dp", "--timeout=20s"])?;
    // The lease is renewed a moment after it was made.
    e2e::wait::until("every right to be used", DEADLINE, || {
        exactly_what_is_called(&api, "macvtap-operator").map(Some)
    })?;
    let log = running.log();
    for bad in ["orbidden", "not published", "failed"] {
        ensure!(!log.contains(bad), "the operator's log says {bad:?}:\n{log}");
    }
    refused(operator.run(&["get", "secrets", "-A"]), "Forbidden")?;
    refused(operator.run(&["patch", "node", "n1", "--type=merge", "-p", "{}"]), "Forbidden")?;
    refused(operator.run(&["delete", "mrp", "dp"]), "Forbidden")
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
fn the_kinds_are_upgraded_with_the_release_and_outlive_it() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let crd = "macvtapresourcepools.macvtap.network.kubevirt.io";
    let old = r#"[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/priority"}]"#;
    api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", old])?;
    install(&api, &["logLevel=debug"])?;
    let explained = e2e::wait::until("the new schema", DEADLINE, || {
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
            process::output(command.args(["create", "--dry-run=server", "-f"]).arg(&path))?;
            checked += 1;
        }
    }
    ensure!(checked >= 6, "only {checked} examples were found");
    Ok(())
}

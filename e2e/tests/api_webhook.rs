//! The webhook on a real API server, with the rights and the configuration of the chart.

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use api::chart::{NAMESPACE, install};
use api::{Api, Program};
use e2e::layout::Checkout;
use e2e::{Kubectl, process, wait};
use scene::{DEADLINE, MULTUS_KIND, NETWORKS};
use serde_json::{Value, json};

const CONFIGURATION: &str = "mutatingwebhookconfiguration/release-macvtap-webhook";
const SECRET: &str = "secret/macvtap-webhook";
const RESOURCE: &str = "macvtap.network.kubevirt.io/net";
const WHOLE: &str = "kernel.org/virt";

/// An API server with the chart installed and these networks: `default/net` and `other/nic` of ours, `default/foreign`,
/// and `default/invalid`, whose resource the server accepts in no pod.
fn prepared() -> Result<Api> {
    let api = Api::without_crds()?;
    api.kubectl.apply(MULTUS_KIND)?;
    api.kubectl.run(&["wait", "--for=condition=Established", "--timeout=30s", "crd", NETWORKS])?;
    install(&api, &["webhook.enabled=true"])?;
    api.kubectl.run(&["create", "namespace", "other"])?;
    for (namespace, name, plugin, resource) in [
        ("default", "net", "macvtap", RESOURCE),
        ("other", "nic", "ehost-device", WHOLE),
        ("default", "foreign", "sriov", "intel.com/vf"),
        ("default", "invalid", "macvtap", "dataplane"),
    ] {
        api.replace(&json!({
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {
                "name": name, "namespace": namespace,
                "annotations": {"k8s.v1.cni.cncf.io/resourceName": resource},
            },
            "spec": {"config": json!({"cniVersion": "1.0.0", "type": plugin}).to_string()},
        }))?;
    }
    Ok(api)
}

/// Starts the webhook as the chart does, with the account's own rights.
fn start(api: &Api, name: &str) -> Result<Program> {
    let token = api.kubectl.run(&["-n", NAMESPACE, "create", "token", "macvtap-webhook"])?;
    let mut config: Value =
        serde_json::from_str(&api.kubectl.run(&["config", "view", "--raw", "-o", "json"])?)?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let directory = api.kubectl.kubeconfig().with_file_name(name);
    std::fs::create_dir_all(&directory)?;
    let kubeconfig = directory.join("kubeconfig");
    std::fs::write(&kubeconfig, config.to_string())?;
    let args = [
        "webhook",
        "--listen=127.0.0.1:0",
        "--namespace",
        NAMESPACE,
        "--configuration=release-macvtap-webhook",
        "--dns-name=localhost",
    ];
    Program::start("macvtap-operator", &args, &kubeconfig)
}

/// Leads the API server, which has no pod network, to a program on this machine.
fn lead_to(api: &Api, program: &Program) -> Result<()> {
    let address = wait::until("the webhook's address", DEADLINE, || program.address().map(Some))?;
    let (_, port) = address.rsplit_once(':').context("an address without a port")?;
    lead_to_port(api, port)
}

fn lead_to_port(api: &Api, port: &str) -> Result<()> {
    let url = format!("https://localhost:{port}/mutate");
    let patch = json!([
        {"op": "remove", "path": "/webhooks/0/clientConfig/service"},
        {"op": "add", "path": "/webhooks/0/clientConfig/url", "value": url},
    ]);
    // Later on it is the address that changes.
    let other = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/url", "value": url}]);
    let patched =
        |patch: &Value| api.kubectl.run(&["patch", CONFIGURATION, "--type=json", "-p", &patch.to_string()]);
    patched(&patch).or_else(|_| patched(&other)).map(drop)
}

fn pod(namespace: &str, networks: &str, containers: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p", "namespace": namespace, "annotations": {"k8s.v1.cni.cncf.io/networks": networks},
        },
        "spec": {"automountServiceAccountToken": false, "containers": containers},
    })
}

/// The containers as the server would store them.
fn created(kubectl: &Kubectl, pod: &Value) -> Result<Value> {
    let args = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let text = process::output_with_input(kubectl.command().args(args), &pod.to_string())?;
    let pod: Value = serde_json::from_str(&text)?;
    Ok(pod["spec"]["containers"].clone())
}

fn plain() -> Value {
    json!([{"name": "a", "image": "none"}, {"name": "b", "image": "none"}])
}

/// Waits until the API server asks the webhook: it learns of a changed configuration a moment later.
fn asks(api: &Api) -> Result<()> {
    wait::until("the webhook's answer", DEADLINE, || {
        let containers = created(&api.kubectl, &pod("default", "net", &plain()))?;
        Ok((containers[0]["resources"]["limits"][RESOURCE] == "1").then_some(()))
    })
}

#[test]
fn pods_without_limits_get_the_devices_of_their_networks() -> Result<()> {
    let api = prepared()?;
    let webhook = start(&api, "first")?;
    lead_to(&api, &webhook)?;
    asks(&api)?;

    let several = created(&api.kubectl, &pod("default", "net@eth5, net, other/nic, foreign", &plain()))?;
    let devices = json!({RESOURCE: "2", WHOLE: "1"});
    assert_eq!(several[0]["resources"], json!({"limits": devices, "requests": devices}));
    assert_eq!(several[1]["resources"], json!({}));

    let own = json!([
        {"name": "a", "image": "none"},
        {"name": "b", "image": "none", "resources": {"limits": {"cpu": "1", RESOURCE: "1"}}},
    ]);
    let kept = created(&api.kubectl, &pod("default", "net", &own))?;
    assert_eq!(kept[0]["resources"], json!({}));
    assert_eq!(kept[1]["resources"]["limits"], json!({"cpu": "1", RESOURCE: "1"}));
    let added = created(&api.kubectl, &pod("default", "net, net", &own))?;
    assert_eq!(added[1]["resources"]["requests"], json!({"cpu": "1", RESOURCE: "2"}));

    // It is not asked there, and not about networks of others.
    let system = created(&api.kubectl, &pod("kube-system", "default/net", &plain()))?;
    assert_eq!(system[0]["resources"], json!({}));
    let foreign = created(&api.kubectl, &pod("default", "foreign", &plain()))?;
    assert_eq!(foreign[0]["resources"], json!({}));

    // Neither a network's annotation nor a large pod keeps the server from creating the pod.
    let mut large = pod("default", "invalid, net", &plain());
    large["spec"]["containers"][1]["env"] = vec![json!({"name": "n", "value": "v".repeat(1000)}); 700].into();
    let large = created(&api.kubectl, &large)?;
    assert_eq!(large[0]["resources"]["limits"], json!({RESOURCE: "1"}));

    // A network that does not exist stops nobody, and kubectl prints why nothing was added.
    let mut command = api.kubectl.command();
    let missing = pod("default", "missing", &plain());
    command.args(["create", "--dry-run=server", "-f", "-"]).stdin(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("no input")?, missing.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("default/missing does not exist"), "{output:?}");

    // Stored as it was judged.
    api.create(&pod("default", "net", &plain()))?;
    let stored = api.kubectl.get("default", "pod/p")?;
    assert_eq!(stored["spec"]["containers"][0]["resources"]["limits"][RESOURCE], "1");

    // When it has ended, nobody waits for it.
    api.kubectl.run(&["delete", "pod", "p", "--now", "--wait=false"])?;
    api.kubectl.wait_for("default", "pod/p", "delete", DEADLINE)?;
    ensure!(webhook.terminate()? == Some(0), "the webhook did not end in order");
    let without = created(&api.kubectl, &pod("default", "net", &plain()))?;
    assert_eq!(without[0]["resources"], json!({}));

    // Nor for long when it hangs.
    let hanging = std::net::TcpListener::bind("127.0.0.1:0")?;
    hanging.set_nonblocking(true)?;
    lead_to_port(&api, &hanging.local_addr()?.port().to_string())?;
    wait::until("the API server to ask a webhook that hangs", DEADLINE, || {
        let without = created(&api.kubectl, &pod("default", "net", &plain()))?;
        assert_eq!(without[0]["resources"], json!({}));
        Ok(hanging.accept().is_ok().then_some(()))
    })
}

#[test]
fn a_certificate_is_renewed_while_another_replica_serves_the_former_one() -> Result<()> {
    let api = prepared()?;
    let first = start(&api, "first")?;
    lead_to(&api, &first)?;
    asks(&api)?;
    let secret = || -> Result<Value> { Ok(api.kubectl.get(NAMESPACE, SECRET)?["data"].clone()) };
    let before = secret()?;
    api.kubectl.run(&[
        "-n",
        NAMESPACE,
        "annotate",
        SECRET,
        "--overwrite",
        "macvtap.network.kubevirt.io/renewal=2026-01-01T00:00:00Z",
    ])?;
    // A replica that starts finds that the certificate is due.
    let second = start(&api, "second")?;
    let renewed = wait::until("a new certificate", DEADLINE, || {
        let now = secret()?;
        Ok((now["tls.crt"] != before["tls.crt"]).then_some(now))
    })?;
    assert_eq!(renewed["former.crt"], before["tls.crt"]);
    wait::until("the authority of both", DEADLINE, || {
        let configuration = api.kubectl.get("", CONFIGURATION)?;
        let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str().map(str::len);
        Ok((bundle > before["tls.crt"].as_str().map(str::len)).then_some(()))
    })?;
    for program in [&first, &second, &first] {
        lead_to(&api, program)?;
        asks(&api)?;
    }
    // Helm does not take the certificate away.
    let service = json!({"name": "macvtap-webhook", "namespace": NAMESPACE, "path": "/mutate", "port": 443});
    let back = json!([
        {"op": "remove", "path": "/webhooks/0/clientConfig/url"},
        {"op": "add", "path": "/webhooks/0/clientConfig/service", "value": service},
    ]);
    api.kubectl.run(&["patch", CONFIGURATION, "--type=json", "-p", &back.to_string()])?;
    let bundle = || -> Result<Value> {
        Ok(api.kubectl.get("", CONFIGURATION)?["webhooks"][0]["clientConfig"]["caBundle"].clone())
    };
    let known = bundle()?;
    install(&api, &["webhook.enabled=true", "webhook.replicas=3"])?;
    assert_eq!((secret()?, bundle()?), (renewed, known));
    // A key that somebody damaged is replaced by the next one that starts.
    api.kubectl.run(&["-n", NAMESPACE, "patch", SECRET, "-p", r#"{"data": {"tls.key": "bm90aGluZw=="}}"#])?;
    let third = start(&api, "third")?;
    lead_to(&api, &third)?;
    asks(&api)
}

fn cli(api: &Api) -> std::process::Command {
    let program = Checkout::here().path("target/debug/kubectl-macvtap");
    let mut command = std::process::Command::new(program);
    command.env("KUBECONFIG", api.kubectl.kubeconfig());
    command
}

/// The reasons that `kubectl macvtap check` gives about the webhook.
fn checked(api: &Api) -> Result<Vec<String>> {
    let output = cli(api).args(["check", "-o", "json"]).output().context("run kubectl-macvtap")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("read the report")?;
    let mut sections = report["sections"].as_array().into_iter().flatten();
    let section = sections.find(|section| section["title"] == "webhook");
    let found = section.with_context(|| format!("no section about the webhook: {report:#}"))?;
    let all = found["diagnostics"].as_array().into_iter().flatten();
    Ok(all.filter_map(|found| found["reason"].as_str().map(str::to_owned)).collect())
}

#[test]
fn a_check_names_what_keeps_the_webhook_from_its_work() -> Result<()> {
    api::build(&Checkout::here(), "kubectl-macvtap")?;
    let api = prepared()?;
    assert_eq!(checked(&api)?, ["WebhookNotServing", "WebhookNotTrusted", "WebhookNotRenewed"]);

    // Its endpoints, as the controllers of a cluster write them.
    api.replace(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "macvtap-webhook-x", "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": "macvtap-webhook"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}],
    }))?;
    let webhook = start(&api, "first")?;
    wait::until("a webhook that is well", DEADLINE, || Ok(checked(&api)?.is_empty().then_some(())))?;
    ensure!(webhook.terminate()? == Some(0), "the webhook did not end in order");

    let view = ["config", "view", "--raw", "--flatten", "-o", "json"];
    let config: Value = serde_json::from_str(&api.kubectl.run(&view)?)?;
    let foreign = &config["clusters"][0]["cluster"]["certificate-authority-data"];
    ensure!(foreign.is_string(), "the kubeconfig has no authority");
    let patch = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": foreign}]);
    api.kubectl.run(&["patch", CONFIGURATION, "--type=json", "-p", &patch.to_string()])?;
    assert_eq!(checked(&api)?, ["WebhookNotTrusted"]);
    api.kubectl.run(&["-n", NAMESPACE, "delete", SECRET])?;
    assert_eq!(checked(&api)?, ["WebhookNotTrusted", "WebhookSecretMissing"]);

    let archive = api.kubectl.kubeconfig().with_file_name("dump.tar.gz");
    let file = archive.to_str().context("a path")?;
    process::output(cli(&api).args(["sysdump", "-f", file]))?;
    let all = process::output(std::process::Command::new("tar").args(["-xzOf", file]))?;
    for wanted in
        ["kind: MutatingWebhookConfiguration", "caBundle", "app.kubernetes.io/name: macvtap-webhook"]
    {
        ensure!(all.contains(wanted), "{wanted} is not in the archive");
    }
    Ok(())
}

#[test]
fn its_rights_are_those_of_its_own_objects() -> Result<()> {
    let api = prepared()?;
    api::build(&Checkout::here(), "macvtap-operator")?;
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:macvtap-webhook");
    let may = |words: &[&str]| {
        let args = [&["auth", "can-i", "-q", &account], words].concat();
        api.kubectl.run(&args).is_ok()
    };
    for allowed in [
        &["get", NETWORKS, "-n", "other"][..],
        &["update", SECRET, "-n", NAMESPACE],
        &["patch", CONFIGURATION],
    ] {
        ensure!(may(allowed), "{allowed:?} is not allowed");
    }
    for refused in [
        &["list", "secrets", "-n", NAMESPACE][..],
        &["get", "secret/other", "-n", NAMESPACE],
        &["get", SECRET, "-n", "other"],
        &["patch", "mutatingwebhookconfiguration/other"],
        &["delete", CONFIGURATION],
        &["list", "pods", "-n", "other"],
        &["create", NETWORKS, "-n", "other"],
    ] {
        ensure!(!may(refused), "{refused:?} is allowed");
    }
    Ok(())
}

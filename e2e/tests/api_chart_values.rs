//! What the chart's values are for, judged by a real API server: everything switched on, and every distribution.

mod api;

use anyhow::{Context as _, Result, ensure};
use api::Api;
use api::chart::{NAMESPACE, helm, install, refused, rendered, rendered_with};
use e2e::layout::Checkout;
use e2e::process;
use serde_json::{Value, json};
use std::time::Duration;

/// Kinds of others that the chart can make objects of: plural, kind and group.
const FOREIGN: [(&str, &str, &str, &str); 4] = [
    ("podmonitors", "PodMonitor", "monitoring.coreos.com", "v1"),
    ("servicemonitors", "ServiceMonitor", "monitoring.coreos.com", "v1"),
    ("prometheusrules", "PrometheusRule", "monitoring.coreos.com", "v1"),
    ("securitycontextconstraints", "SecurityContextConstraints", "security.openshift.io", "v1"),
];

/// Every switch, and every value that is empty by default.
const EVERYTHING: [&str; 43] = [
    "agent.listen=0.0.0.0:9469",
    "metrics.service=true",
    "metrics.podMonitor=true",
    "metrics.serviceMonitor=true",
    "metrics.rules=true",
    "metrics.dashboard=true",
    "metrics.labels.release=prometheus",
    "networkPolicy.enabled=true",
    "webhook.enabled=true",
    "networkPolicy.from[0].podSelector.matchLabels.app=prometheus",
    "criticalPodsQuota.enabled=true",
    "rbac.aggregateEdit=true",
    "test.resource=macvtap.network.kubevirt.io/dataplane",
    "test.network=default/dataplane",
    "openshift.securityContextConstraints=true",
    "commonLabels.team=network",
    "global.imageRegistry=registry.example:5000/mirror",
    "operator.image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "agent.image.registry=other.example",
    "agent.image.tag=v9",
    "operator.labels.l=operator",
    "operator.annotations.a=operator",
    "operator.podLabels.pl=operator",
    "operator.podAnnotations.pa=operator",
    "operator.topologySpreadConstraints[0].maxSkew=1",
    "operator.topologySpreadConstraints[0].topologyKey=zone",
    "operator.topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
    "operator.extraEnv[0].name=HTTPS_PROXY",
    "operator.extraEnv[0].value=http://proxy.example",
    "operator.extraVolumes[0].name=more",
    "operator.extraVolumeMounts[0].name=more",
    "operator.extraVolumeMounts[0].mountPath=/more",
    "agent.labels.l=agent",
    "agent.annotations.a=agent",
    "agent.podLabels.pl=agent",
    "agent.podAnnotations.pa=agent",
    "agent.extraEnv[0].name=RUST_LOG",
    "agent.extraVolumes[0].name=more",
    "agent.extraVolumeMounts[0].name=more",
    "agent.extraVolumeMounts[0].mountPath=/more",
    "agent.maxSurge=0",
    "agent.maxUnavailable=20%",
    "extraObjects[0]=apiVersion: v1\nkind: ConfigMap\nmetadata: {name: \"{{ .Release.Name }}-extra\"}\n",
];

/// A server that knows the kinds of others, and has the release's namespace.
fn server() -> Result<Api> {
    let api = Api::own()?;
    api.kubectl.run(&["create", "namespace", NAMESPACE])?;
    for (plural, kind, group, version) in FOREIGN {
        let schema =
            json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        api.replace(&json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group,
                "scope": if group.starts_with("security") { "Cluster" } else { "Namespaced" },
                "names": {"plural": plural, "kind": kind},
                "versions": [{"name": version, "served": true, "storage": true, "schema": schema}],
            },
        }))?;
    }
    let kinds = FOREIGN.map(|(plural, _, group, _)| format!("crd/{plural}.{group}"));
    let mut wait = vec!["wait", "--for=condition=Established", "--timeout=30s"];
    wait.extend(kinds.iter().map(String::as_str));
    api.kubectl.run(&wait)?;
    Ok(api)
}

/// Has the server judge a rendered chart without storing anything, and gives the objects as it would store them. Unknown
/// fields and repeated keys are errors.
fn judged(api: &Api, text: &str) -> Result<Vec<Value>> {
    let mut command = api.kubectl.command();
    // The kinds of ours are there already, as on a cluster with an earlier release.
    command.args(["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"]);
    command.args(["-n", NAMESPACE, "-o", "json", "-f", "-"]);
    let list = process::output_with_input(&mut command, text)?;
    let list: Value = serde_json::from_str(&list).context("read what the server says")?;
    let items = list["items"].as_array().context("no list")?.clone();
    ensure!(items.len() >= 15, "only {} objects", items.len());
    Ok(items)
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} {name}"))
}

#[test]
fn everything_that_can_be_switched_on_is_taken_by_the_server() -> Result<()> {
    let api = server()?;
    let objects = judged(&api, &rendered(&api, &EVERYTHING)?)?;
    for object in &objects {
        let own = object["metadata"]["name"] == "release-extra";
        ensure!(own || object["metadata"]["labels"]["team"] == "network", "{object}");
    }
    for (kind, name, part) in
        [("Deployment", "macvtap-operator", "operator"), ("DaemonSet", "macvtap-node-agent", "agent")]
    {
        let workload = find(&objects, kind, name)?;
        let pod = &workload["spec"]["template"];
        assert_eq!(workload["metadata"]["labels"]["l"], part);
        assert_eq!(workload["metadata"]["annotations"]["a"], part);
        assert_eq!(pod["metadata"]["labels"]["pl"], part);
        assert_eq!(pod["metadata"]["annotations"]["pa"], part);
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().context("no mounts")?;
        ensure!(mounts.iter().any(|mount| mount["name"] == "more"), "{mounts:?}");
    }
    let operator = &find(&objects, "Deployment", "macvtap-operator")?["spec"]["template"]["spec"];
    let digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    assert_eq!(
        operator["containers"][0]["image"],
        format!("registry.example:5000/mirror/macvtap-operator@sha256:{digest}")
    );
    assert_eq!(
        operator["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]["app.kubernetes.io/name"],
        "macvtap-operator"
    );
    let agent = &find(&objects, "DaemonSet", "macvtap-node-agent")?["spec"];
    for container in ["initContainers", "containers"] {
        assert_eq!(agent["template"]["spec"][container][0]["image"], "other.example/macvtap-node-agent:v9");
    }
    // A node that is full has no room for a second agent.
    assert_eq!(agent["updateStrategy"]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": "20%"}));
    // A port of the pod is one of the host, and two agents on one node could not hand over.
    assert_eq!(agent["template"]["spec"]["containers"][0].get("ports"), None);
    monitored(&objects)?;
    let test = find(&objects, "Pod", "release-macvtap-test")?;
    assert_eq!(
        test["spec"]["containers"][0]["resources"]["limits"]["macvtap.network.kubevirt.io/dataplane"],
        "1"
    );
    find(&objects, "ResourceQuota", "macvtap-critical-pods")?;
    find(&objects, "NetworkPolicy", "macvtap-operator")?;
    webhook(&objects)?;
    find(&objects, "ConfigMap", "release-extra").map(drop)
}

/// Checks that the webhook's pods are evicted one by one, reached at their port only, and allowed to run as their user.
fn webhook(objects: &[Value]) -> Result<()> {
    let labels = &find(objects, "Deployment", "macvtap-webhook")?["spec"]["selector"]["matchLabels"];
    let budget = &find(objects, "PodDisruptionBudget", "macvtap-webhook")?["spec"];
    assert_eq!((&budget["maxUnavailable"], &budget["selector"]["matchLabels"]), (&json!(1), labels));
    let policy = &find(objects, "NetworkPolicy", "macvtap-webhook")?["spec"];
    assert_eq!(&policy["podSelector"]["matchLabels"], labels);
    assert_eq!(policy["ingress"], json!([{"ports": [{"port": "https", "protocol": "TCP"}]}]));
    let binding = find(objects, "RoleBinding", "macvtap-operator-nonroot")?;
    let subjects = binding["subjects"].as_array().context("no subjects")?;
    let names: Vec<_> = subjects.iter().map(|subject| &subject["name"]).collect();
    assert_eq!(names, ["macvtap-operator", "macvtap-webhook"]);
    Ok(())
}

/// Monitors select what the chart makes, rules and dashboard are those of the chart's files.
fn monitored(objects: &[Value]) -> Result<()> {
    for (name, port) in [("macvtap-operator", "http"), ("macvtap-node-agent", "")] {
        let service = find(objects, "Service", &format!("{name}-metrics"))?;
        let monitor = &find(objects, "ServiceMonitor", name)?["spec"];
        assert_eq!(service["spec"]["ports"][0]["name"], monitor["endpoints"][0]["port"]);
        for (key, value) in monitor["selector"]["matchLabels"].as_object().context("no selector")? {
            assert_eq!(&service["metadata"]["labels"][key], value);
        }
        let endpoint = &find(objects, "PodMonitor", name)?["spec"]["podMetricsEndpoints"][0];
        if port.is_empty() {
            assert_eq!(
                (&endpoint["portNumber"], &service["spec"]["ports"][0]["port"]),
                (&json!(9469), &json!(9469))
            );
        } else {
            assert_eq!(endpoint["port"], port);
        }
    }
    let rule = find(objects, "PrometheusRule", "macvtap")?;
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
    ensure!(rule["spec"]["groups"][0]["rules"][0]["alert"].is_string(), "{rule}");
    let dashboard = find(objects, "ConfigMap", "macvtap-dashboard")?;
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let text = dashboard["data"]["macvtap.json"].as_str().context("no dashboard")?;
    let dashboard: Value = serde_json::from_str(text).context("the dashboard is not JSON")?;
    ensure!(dashboard["panels"].is_array(), "{dashboard}");
    Ok(())
}

#[test]
fn by_default_nothing_needs_kinds_of_others_and_the_image_is_that_of_the_release() -> Result<()> {
    let api = server()?;
    let objects = judged(&api, &rendered(&api, &[])?)?;
    for (_, kind, ..) in FOREIGN {
        ensure!(objects.iter().all(|object| object["kind"] != kind), "{kind}");
    }
    let agent = &find(&objects, "DaemonSet", "macvtap-node-agent")?["spec"]["template"]["spec"];
    let image = format!("macvtap-node-agent:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(agent["containers"][0]["image"], image);
    Ok(())
}

#[test]
fn every_distribution_has_its_directories() -> Result<()> {
    let api = server()?;
    let agents = |name: &str| -> Result<Vec<Value>> {
        let file = Checkout::here().path("charts/macvtap-operator/values").join(format!("{name}.yaml"));
        judged(&api, &rendered_with(&api, &file.to_string_lossy())?).context(name.to_owned())
    };
    let distributions = [
        ("kind", "/opt/cni/bin", "/var/lib/kubelet"),
        ("k3s", "/var/lib/rancher/k3s/data/cni", "/var/lib/kubelet"),
        ("rke2", "/opt/cni/bin", "/var/lib/kubelet"),
        ("k0s", "/opt/cni/bin", "/var/lib/k0s/kubelet"),
        ("microk8s", "/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/common/var/lib/kubelet"),
        ("talos", "/opt/cni/bin", "/var/lib/kubelet"),
        ("openshift", "/var/lib/cni/bin", "/var/lib/kubelet"),
        ("gke", "/home/kubernetes/bin", "/var/lib/kubelet"),
        ("eks", "/opt/cni/bin", "/var/lib/kubelet"),
    ];
    let docs = std::fs::read_to_string(Checkout::here().path("docs/distributions.md"))?;
    for (name, cni, kubelet) in distributions {
        let objects = agents(name)?;
        let pod = &find(&objects, "DaemonSet", "macvtap-node-agent")?["spec"]["template"]["spec"];
        let path = |volume: &str| {
            let volumes = pod["volumes"].as_array()?;
            volumes.iter().find(|found| found["name"] == volume)?.pointer("/hostPath/path").cloned()
        };
        assert_eq!(path("cni-bin"), Some(json!(cni)), "{name}");
        assert_eq!(path("pod-resources"), Some(json!(format!("{kubelet}/pod-resources"))), "{name}");
        // The kubelet has this one in its code.
        assert_eq!(path("device-plugins"), Some(json!("/var/lib/kubelet/device-plugins")), "{name}");
        let row = docs.lines().find(|line| line.contains(&format!("values/{name}.yaml)")));
        let row = row.with_context(|| format!("docs/distributions.md has no row for {name}"))?;
        ensure!(row.contains(&format!("`{cni}`")) && row.contains(&format!("`{kubelet}`")), "{name}: {row}");
        assert_eq!(
            find(&objects, "SecurityContextConstraints", "release-macvtap-node-agent").is_ok(),
            name == "openshift"
        );
        assert_eq!(find(&objects, "ResourceQuota", "macvtap-critical-pods").is_ok(), name == "gke");
    }
    let files = std::fs::read_dir(Checkout::here().path("charts/macvtap-operator/values"))?.count();
    assert_eq!(files, distributions.len(), "a file of values that nobody judges");
    Ok(())
}

#[test]
fn network_namespaces_are_seen_at_the_paths_that_runtimes_write() -> Result<()> {
    let api = Api::shared()?;
    let default = rendered(&api, &[])?;
    let third = rendered(&api, &["agent.netnsDirs={/run/netns,/var/run/netns,/run/k0s/netns}"])?;
    for (text, directories) in [
        (&default, &["/run/netns", "/var/run/netns"][..]),
        (&third, &["/run/netns", "/var/run/netns", "/run/k0s/netns"]),
    ] {
        assert_eq!(text.matches("mountPropagation: HostToContainer").count(), directories.len());
        for (index, directory) in directories.iter().enumerate() {
            ensure!(
                text.contains(&format!("{{name: netns-{index}, mountPath: {directory}, readOnly: true")),
                "{text}"
            );
            ensure!(
                text.contains(&format!("hostPath: {{path: {directory}, type: DirectoryOrCreate}}")),
                "{text}"
            );
        }
    }
    Ok(())
}

#[test]
fn values_that_contradict_each_other_are_refused_in_words() -> Result<()> {
    let api = Api::shared()?;
    refused(
        rendered(&api, &["agent.maxSurge=0"]),
        "are both 0, so no agent could be upgraded; set one of them",
    )?;
    rendered(&api, &["agent.maxSurge=0", "agent.maxUnavailable=1"])?;
    refused(rendered(&api, &["agent.maxUnavailable=1"]), "set agent.maxSurge to 0")?;
    let labels = ["operator.podLabels", "agent.podLabels", "operator.labels", "agent.labels"];
    for key in labels.into_iter().chain(["commonLabels"]) {
        let given = format!(r"{key}.app\.kubernetes\.io/name=other");
        let why = format!("{key}: the chart sets label app.kubernetes.io/name itself");
        refused(rendered(&api, &[&given]), &why)?;
    }
    // The directory above it is what the agent sees an exchanged directory by.
    let slash = rendered(&api, &["agent.cniBinDir=/opt/cni/bin/"])?;
    ensure!(slash.contains("{name: cni-bin-parent, mountPath: /host/opt/cni}"), "{slash}");
    for monitor in ["service", "podMonitor", "serviceMonitor"] {
        let given = format!("metrics.{monitor}=true");
        refused(
            rendered(&api, &[&given]),
            "agent.listen is 127.0.0.1:9469, where no Prometheus reaches the agents",
        )?;
    }
    refused(rendered(&api, &["test.resource=a/b"]), "test.resource and test.network belong together")?;
    refused(rendered(&api, &["test.resource=a/b", "test.network=x/y/z"]), "network")?;
    // A word that YAML takes for a boolean value is a name like others.
    let word = rendered(&api, &["test.resource=a/b", "test.network=on"])?;
    ensure!(word.contains("k8s.v1.cni.cncf.io/networks: \"on\""), "{word}");
    refused(rendered(&api, &["operator.image=one-string:1"]), "image")?;
    refused(rendered(&api, &["agent.image.digest=md5:1"]), "digest")?;
    // The label of one object goes before that of every object; kustomize takes no key that is given twice.
    let twice =
        rendered(&api, &["commonLabels.team=every", "agent.labels.team=one", "agent.podLabels.team=pod"])?;
    let set = twice.split("\n---\n").find(|object| object.contains("\nkind: DaemonSet\n"));
    let set = set.context("no DaemonSet")?;
    ensure!(set.contains("team: one") && set.contains("team: pod") && !set.contains("team: every"), "{set}");
    for (given, why) in [
        ("metrics=null", "missing property 'metrics'"),
        ("agent.listen=null", "missing property 'listen'"),
        ("agent.netnsDirs=null", "missing property 'netnsDirs'"),
        ("agent.cniBinDir=//", "does not match pattern"),
    ] {
        refused(rendered(&api, &[given]), why)?;
    }
    // A part without values is off.
    let without = rendered(&api, &["webhook=null", "openshift.securityContextConstraints=true"])?;
    ensure!(!without.contains("macvtap-webhook"), "{without}");
    Ok(())
}

#[test]
fn viewers_of_the_cluster_see_pools_and_editors_write_them_only_if_it_was_asked_for() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let may = |verb: &str, user: &str| {
        let pools = "macvtapresourcepools.macvtap.network.kubevirt.io";
        api.kubectl.run(&["auth", "can-i", verb, pools, &format!("--as={user}")]).is_ok()
    };
    for role in ["view", "edit"] {
        let role_name = format!("--clusterrole=release-macvtap-{role}");
        api.kubectl.run(&["create", "clusterrolebinding", role, &role_name, &format!("--user={role}")])?;
    }
    e2e::wait::until("the rights", Duration::from_secs(20), || {
        Ok((may("list", "view") && may("list", "edit") && may("create", "edit")).then_some(()))
    })?;
    ensure!(!may("create", "view") && !may("delete", "view"), "a viewer writes");
    // The control plane adds to the cluster's own roles what has their label.
    let added = |role: &str, to: &str| -> Result<bool> {
        let role = api.kubectl.get("", &format!("clusterrole/release-macvtap-{role}"))?;
        Ok(role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{to}")] == "true")
    };
    ensure!(added("view", "view")? && added("view", "edit")? && added("view", "admin")?, "nobody reads");
    ensure!(!added("edit", "edit")? && !added("edit", "admin")?, "written without a word");
    install(&api, &["rbac.aggregateEdit=true"])?;
    ensure!(added("edit", "edit")? && added("edit", "admin")? && !added("edit", "view")?, "not added");
    Ok(())
}

#[test]
fn the_kinds_that_stay_are_taken_over_by_a_release_of_another_name_and_namespace() -> Result<()> {
    let api = Api::without_crds()?;
    install(&api, &[])?;
    let pool = json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapResourcePool",
        "metadata": {"name": "kept"},
        "spec": {"links": [{"names": ["dp0"]}]},
    });
    e2e::wait::until("the kinds", Duration::from_secs(20), || api.create_dry(&pool).map(Some))?;
    api.replace(&pool)?;
    helm(&api, &["uninstall", "release", "-n", NAMESPACE])?;
    let chart = Checkout::here().path("charts/macvtap-operator");
    let chart = chart.to_string_lossy();
    let again = ["install", "other", &chart, "-n", "elsewhere", "--create-namespace"];
    refused(helm(&api, &again), "invalid ownership metadata")?;
    helm(&api, &[&again[..], &["--take-ownership"]].concat())?;
    api.kubectl.get("", "mrp/kept").context("the pool is gone").map(drop)
}

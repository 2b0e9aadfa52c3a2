//! `sysdump`: what a bug report needs in one archive, without secrets.

mod redact;

use crate::args::{Check, Sysdump};
use crate::check;
use crate::cluster::{Cluster, Unread, list};
use crate::facts::{AGENT, NETWORK_KIND, OPERATOR, OUR_KINDS, WEBHOOK};
use crate::output::{self, Format};
use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, LogParams, TypeMeta};
use kube::{Api, ResourceExt as _};
use macvtap_crds::GROUP;
use std::fs::File;
use std::path::PathBuf;

/// The archive while it grows.
type Archive = tar::Builder<GzEncoder<File>>;

/// What is listed: group, version, kind, plural, label selector. Secrets and `ConfigMap`s are not among them.
const LISTED: [(&str, &str, &str, &str, &str); 14] = [
    (GROUP, "v1alpha1", "MacvtapResourcePool", "macvtapresourcepools", ""),
    (GROUP, "v1alpha1", "MacvtapNodeState", "macvtapnodestates", ""),
    (GROUP, "v1alpha1", "MacvtapNodeConfig", "macvtapnodeconfigs", ""),
    ("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition", "network-attachment-definitions", ""),
    ("", "v1", "Node", "nodes", ""),
    ("", "v1", "ResourceQuota", "resourcequotas", ""),
    ("apps", "v1", "Deployment", "deployments", OPERATOR),
    ("apps", "v1", "DaemonSet", "daemonsets", AGENT),
    ("", "v1", "Pod", "pods", OPERATOR),
    ("", "v1", "Pod", "pods", AGENT),
    ("apps", "v1", "Deployment", "deployments", WEBHOOK),
    ("", "v1", "Pod", "pods", WEBHOOK),
    (
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "app.kubernetes.io/part-of=macvtap",
    ),
    ("coordination.k8s.io", "v1", "Lease", "leases", ""),
];

/// Collects, and returns whether something was collected.
pub(crate) async fn run(cluster: &Cluster, args: &Sysdump) -> Result<bool> {
    let now = Timestamp::now();
    let stem = format!("macvtap-sysdump-{}", now.strftime("%Y%m%d-%H%M%S"));
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{stem}.tar.gz")));
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut dump = Dump {
        archive: tar::Builder::new(GzEncoder::new(file, Compression::default())),
        stem,
        now,
        problems: String::new(),
    };
    let checks = Check {
        pre: false,
        namespace: "macvtap-system".to_owned(),
        wait: None,
        shown: crate::args::Shown { output: Format::Text },
    };
    let report = check::pass(cluster, &checks).await;
    dump.add("check.txt", &output::text(&report, output::Colour::none()))?;
    for (group, version, kind, plural, labels) in LISTED {
        dump.list(cluster, &GroupVersionKind::gvk(group, version, kind), plural, labels).await?;
    }
    dump.kinds(cluster).await?;
    dump.events(cluster).await?;
    dump.logs(cluster, args.log_lines).await?;
    let (problems, about) = (
        std::mem::take(&mut dump.problems),
        format!("kubectl-macvtap {}\n{now}\n", env!("CARGO_PKG_VERSION")),
    );
    dump.add("about.txt", &about)?;
    dump.add("not-collected.txt", &problems)?;
    dump.archive
        .into_inner()
        .and_then(GzEncoder::finish)
        .with_context(|| format!("write {}", path.display()))?;
    output::write(&format!(
        "{} is written. Values that look like secrets are left out; read it before you publish it.\n",
        path.display()
    ))?;
    Ok(true)
}

struct Dump {
    archive: Archive,
    stem: String,
    now: Timestamp,
    problems: String,
}

impl Dump {
    fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let text = redact::text(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).context("a file of the archive is too long")?);
        header.set_mode(0o644);
        header.set_mtime(u64::try_from(self.now.as_second()).unwrap_or_default());
        let place = format!("{}/{name}", self.stem);
        self.archive
            .append_data(&mut header, &place, text.as_bytes())
            .with_context(|| format!("write {place}"))
    }

    fn problem(&mut self, what: &str, why: &str) {
        self.problems.extend([what, ": ", why, "\n"]);
    }

    async fn list(
        &mut self,
        cluster: &Cluster,
        kind: &GroupVersionKind,
        plural: &str,
        labels: &str,
    ) -> Result<()> {
        let resource = ApiResource::from_gvk_with_plural(kind, plural);
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let mut params = ListParams::default().labels(labels);
        if plural == "leases" {
            params = params.fields("metadata.name=macvtap-operator");
        }
        let of = labels
            .rsplit('=')
            .next()
            .filter(|of| !of.is_empty())
            .map(|of| format!("-{of}"))
            .unwrap_or_default();
        match list(api, params).await {
            Ok(mut objects) => {
                // The items of a list do not repeat what they are.
                for object in &mut objects {
                    object.types =
                        Some(TypeMeta { api_version: kind.api_version(), kind: kind.kind.clone() });
                }
                self.objects(&format!("{plural}{of}.yaml"), &objects)
            }
            Err(unread) => {
                self.problem(plural, unread.text());
                Ok(())
            }
        }
    }

    fn objects(&mut self, name: &str, objects: &[DynamicObject]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            let clean = redact::object(serde_json::to_value(object)?);
            text.push_str("---\n");
            text.push_str(&serde_yaml::to_string(&clean).context("write YAML")?);
        }
        self.add(name, &text)
    }

    async fn kinds(&mut self, cluster: &Cluster) -> Result<()> {
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            "customresourcedefinitions",
        );
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let mut found = Vec::new();
        for name in OUR_KINDS.into_iter().chain([NETWORK_KIND]) {
            match api.get(name).await.map_err(Unread::from) {
                Ok(kind) => found.push(kind),
                Err(unread) => self.problem(name, unread.text()),
            }
        }
        self.objects("customresourcedefinitions.yaml", &found)
    }

    /// Events about objects of this project, and those of pods that mention it.
    async fn events(&mut self, cluster: &Cluster) -> Result<()> {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Event"), "events");
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        match list(api, ListParams::default()).await {
            Ok(all) => {
                let ours: Vec<_> = all
                    .into_iter()
                    .filter(|event| event.data.to_string().to_lowercase().contains("macvtap"))
                    .collect();
                self.objects("events.yaml", &ours)
            }
            Err(unread) => {
                self.problem("events", unread.text());
                Ok(())
            }
        }
    }

    async fn logs(&mut self, cluster: &Cluster, lines: i64) -> Result<()> {
        for labels in [OPERATOR, AGENT, WEBHOOK] {
            let all: Result<Vec<Pod>, _> =
                list(Api::all(cluster.client.clone()), ListParams::default().labels(labels)).await;
            let pods = match all {
                Ok(pods) => pods,
                Err(unread) => {
                    self.problem(&format!("logs of {labels}"), unread.text());
                    continue;
                }
            };
            for pod in pods {
                self.pod_logs(cluster, &pod, lines).await?;
            }
        }
        Ok(())
    }

    async fn pod_logs(&mut self, cluster: &Cluster, pod: &Pod, lines: i64) -> Result<()> {
        let name = pod.name_any();
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &pod.namespace().unwrap_or_default());
        let containers = pod.spec.as_ref().map(|spec| spec.containers.clone()).unwrap_or_default();
        for container in containers {
            for previous in [false, true] {
                let params = LogParams {
                    container: Some(container.name.clone()),
                    previous,
                    tail_lines: Some(lines),
                    timestamps: true,
                    ..LogParams::default()
                };
                let which = if previous { "-previous" } else { "" };
                match api.logs(&name, &params).await.map_err(Unread::from) {
                    Ok(log) => self.add(&format!("logs/{name}-{}{which}.log", container.name), &log)?,
                    // Most containers never ended.
                    Err(_) if previous => {}
                    Err(unread) => self.problem(&format!("log of {name}"), unread.text()),
                }
            }
        }
        Ok(())
    }
}

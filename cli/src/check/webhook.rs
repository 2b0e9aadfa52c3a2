//! The webhook, where it is installed: whether the API server can call it, and trusts it.

use crate::advice::anchor;
use crate::cluster::{Cluster, Read, Unread, list};
use crate::report::{Diagnostic, Section};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, ServiceReference,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{ListParams, PartialObjectMeta};
use kube::{Api, ResourceExt as _};
use macvtap_operator::webhook::{certificate, credentials};

/// Name of the webhook in its configuration.
const NAME: &str = "limits.macvtap.network.kubevirt.io";

/// Name of its Secret.
const SECRET: &str = "macvtap-webhook";

/// What happens while the API server cannot call it.
const EFFECT: &str = "pods without limits are created without their device";

/// An installed webhook.
struct Installed {
    configuration: String,
    bundle: Vec<u8>,
    /// Absent if the API server calls an address.
    service: Option<ServiceReference>,
    slices: Read<Vec<EndpointSlice>>,
    /// Without its content.
    secret: Read<PartialObjectMeta<Secret>>,
}

/// Reads and checks; nothing if no webhook is installed.
pub(super) async fn check(cluster: &Cluster, now: Timestamp) -> Option<Section> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let found = match list(api, ListParams::default()).await {
        Err(unread) => {
            let fact = format!("whether the webhook is installed is not known: {}", unread.text());
            vec![Diagnostic::skipped(fact)]
        }
        Ok(all) => {
            let mut found = Vec::new();
            for (configuration, webhook) in all.iter().filter_map(ours) {
                found.extend(judge(&read(cluster, configuration, webhook).await, now));
            }
            found
        }
    };
    (!found.is_empty()).then(|| Section::new("webhook", found))
}

fn ours(configuration: &MutatingWebhookConfiguration) -> Option<(String, &MutatingWebhook)> {
    let mut webhooks = configuration.webhooks.iter().flatten();
    Some((configuration.name_any(), webhooks.find(|webhook| webhook.name == NAME)?))
}

async fn read(cluster: &Cluster, configuration: String, webhook: &MutatingWebhook) -> Installed {
    let config = &webhook.client_config;
    let bundle = config.ca_bundle.clone().unwrap_or_default().0;
    let Some(service) = config.service.clone() else {
        let (slices, secret) = (Ok(Vec::new()), Err(Unread::Absent));
        return Installed { configuration, bundle, service: None, slices, secret };
    };
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), &service.namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={}", service.name));
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &service.namespace);
    let (slices, secret) = tokio::join!(list(slices, of_service), secrets.get_metadata(SECRET));
    Installed { configuration, bundle, service: Some(service), slices, secret: secret.map_err(Unread::from) }
}

fn judge(webhook: &Installed, now: Timestamp) -> Vec<Diagnostic> {
    let name = format!("webhook {}", webhook.configuration);
    let Some(service) = &webhook.service else {
        return vec![Diagnostic::skipped(format!(
            "{name} is called at an address: only the API server can try it"
        ))];
    };
    vec![
        serving(&name, service, &webhook.slices),
        trusted(&name, service, &webhook.bundle, now),
        kept(&name, service, &webhook.secret, now),
    ]
}

fn serving(name: &str, service: &ServiceReference, slices: &Read<Vec<EndpointSlice>>) -> Diagnostic {
    let slices = match slices {
        Err(unread) => {
            return Diagnostic::skipped(format!("the endpoints of {name} cannot be read: {}", unread.text()));
        }
        Ok(slices) => slices,
    };
    let is_ready =
        |endpoint: &&Endpoint| endpoint.conditions.as_ref().and_then(|now| now.ready) != Some(false);
    let ready = slices.iter().flat_map(|slice| &slice.endpoints).filter(is_ready).count();
    if ready > 0 {
        return Diagnostic::ok(format!("{name} has {ready} ready endpoints"));
    }
    failed(format!("{name} has no ready endpoint: {EFFECT}"), "WebhookNotServing").remedy(format!(
        "kubectl -n {} describe deployment {}, and read the log of its pods",
        service.namespace, service.name
    ))
}

fn trusted(name: &str, service: &ServiceReference, bundle: &[u8], now: Timestamp) -> Diagnostic {
    let server = format!("{}.{}.svc", service.name, service.namespace);
    match certificate::check_bundle(bundle, &server, now) {
        Ok(()) => Diagnostic::ok(format!("the caBundle of {name} is valid for {server}")),
        Err(error) => failed(
            format!("the caBundle of {name} is not the webhook's certificate: {error}; {EFFECT}"),
            "WebhookNotTrusted",
        )
        .remedy(
            "the webhook's pods correct it once a minute: read their log, and find out who else writes the field",
        ),
    }
}

fn kept(
    name: &str,
    service: &ServiceReference,
    secret: &Read<PartialObjectMeta<Secret>>,
    now: Timestamp,
) -> Diagnostic {
    let secret_name = format!("{}/{SECRET}", service.namespace);
    let secret = match secret {
        Err(Unread::Absent) => {
            return failed(
                format!("Secret {secret_name} is missing: {name} cannot keep its certificate"),
                "WebhookSecretMissing",
            )
            .remedy("create it again: `helm upgrade` of the chart with the same values");
        }
        Err(unread) => {
            return Diagnostic::skipped(format!("Secret {secret_name} cannot be seen: {}", unread.text()));
        }
        Ok(secret) => secret,
    };
    let renewal: Option<Timestamp> =
        secret.annotations().get(credentials::RENEWAL).and_then(|time| time.parse().ok());
    match renewal {
        Some(renewal) if now < renewal => {
            Diagnostic::ok(format!("the certificate of {name} will be renewed on {}", day(renewal)))
        }
        Some(renewal) => failed(
            format!("the certificate of {name} was due for renewal on {}", day(renewal)),
            "WebhookNotRenewed",
        )
        .remedy("read the log of the webhook's pods"),
        None => failed(format!("Secret {secret_name} has no certificate of {name}"), "WebhookNotRenewed")
            .remedy("the webhook's pods make one within a minute: read their log"),
    }
}

fn failed(fact: String, reason: &str) -> Diagnostic {
    Diagnostic::failed(fact).because(reason).see(anchor::INSTALLATION)
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    const SERVER: &str = "macvtap-webhook.macvtap-system.svc";

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A webhook that serves, with a certificate made on the first of January.
    fn well() -> Installed {
        let made = certificate::make(&[SERVER.to_owned()], time("2026-01-01T00:00:00Z")).unwrap();
        Installed {
            configuration: "macvtap-macvtap-webhook".to_owned(),
            bundle: made.certificate.into_bytes(),
            service: Some(object(json!({"name": "macvtap-webhook", "namespace": "macvtap-system"}))),
            slices: Ok(vec![object(json!({
                "metadata": {}, "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                ],
            }))]),
            secret: Ok(secret(&json!({credentials::RENEWAL: made.renewal.to_string()}))),
        }
    }

    fn secret(annotations: &serde_json::Value) -> PartialObjectMeta<Secret> {
        object(json!({"metadata": {"name": SECRET, "annotations": annotations}}))
    }

    fn reasons(webhook: &Installed, now: &str) -> Vec<String> {
        judge(webhook, time(now)).into_iter().filter_map(|found| found.reason).collect()
    }

    #[test]
    fn a_webhook_that_serves_and_is_trusted_is_well() {
        let found = judge(&well(), time("2026-01-02T00:00:00Z"));
        let facts: Vec<&str> = found.iter().map(|found| found.fact.as_str()).collect();
        assert!(found.iter().all(|found| found.reason.is_none()), "{facts:?}");
        assert!(
            facts[0].ends_with("has 1 ready endpoints") && facts[2].ends_with("on 2026-03-02"),
            "{facts:?}"
        );
    }

    #[test]
    fn a_webhook_that_the_api_server_cannot_call_is_named() {
        let mut webhook = well();
        webhook.slices = Ok(Vec::new());
        assert_eq!(reasons(&webhook, "2026-01-02T00:00:00Z"), ["WebhookNotServing"]);
    }

    #[test]
    fn a_bundle_that_is_empty_foreign_or_expired_is_named() {
        let now = "2026-01-02T00:00:00Z";
        let mut webhook = well();
        assert_eq!(reasons(&webhook, "2026-05-01T00:00:00Z"), ["WebhookNotTrusted", "WebhookNotRenewed"]);
        webhook.bundle.clear();
        assert_eq!(reasons(&webhook, now), ["WebhookNotTrusted"]);
        webhook.bundle =
            certificate::make(&["other.svc".to_owned()], time(now)).unwrap().certificate.into_bytes();
        assert_eq!(reasons(&webhook, now), ["WebhookNotTrusted"]);
    }

    #[test]
    fn a_secret_that_is_lost_or_empty_is_named() {
        let mut webhook = well();
        webhook.secret = Err(Unread::Absent);
        assert_eq!(reasons(&webhook, "2026-01-02T00:00:00Z"), ["WebhookSecretMissing"]);
        webhook.secret = Ok(secret(&json!({})));
        assert_eq!(reasons(&webhook, "2026-01-02T00:00:00Z"), ["WebhookNotRenewed"]);
        webhook.secret = Err(Unread::Forbidden("no".to_owned()));
        assert_eq!(reasons(&webhook, "2026-01-02T00:00:00Z"), [""; 0]);
    }
}

//! The certificate that all replicas share, in a Secret, and its authority in the webhook configuration.
//!
//! A renewal is known to the API server before it is served, and the former certificate stays known until the next one: the
//! replicas need not renew at the same moment.

use super::certificate::{self, Certificate, CertificateError};
use crate::args::Webhook;
use jiff::Timestamp;
use json_patch::Patch as JsonPatch;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use std::collections::BTreeMap;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const FORMER: &str = "former.crt";
/// Annotation of the Secret: when its certificate is renewed. A Secret without it has no certificate yet.
pub const RENEWAL: &str = "macvtap.network.kubevirt.io/renewal";

/// How often a write is tried that another replica was faster with.
const ATTEMPTS: u32 = 3;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Names {
    namespace: String,
    secret: String,
    configuration: String,
    server: Vec<String>,
}

impl Names {
    /// Those of the arguments, in a namespace.
    pub fn new(args: &Webhook, namespace: String) -> Self {
        let service = format!("{}.{namespace}.svc", args.service);
        let server = std::iter::once(service).chain(args.dns_names.iter().cloned()).collect();
        Self { namespace, secret: args.secret.clone(), configuration: args.configuration.clone(), server }
    }
}

/// What is served, and what the API server may still meet on other replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// When it is renewed.
    pub renewal: Timestamp,
    former: Option<String>,
}

impl Credentials {
    /// Whether a server of each of these names can be called with them.
    fn is_usable(&self, servers: &[String], now: Timestamp) -> bool {
        let is_of =
            |server: &String| certificate::check_bundle(self.certificate.as_bytes(), server, now).is_ok();
        certificate::tls(&self.certificate, &self.key).is_ok() && servers.iter().all(is_of)
    }
}

/// Why the certificate is not known to be valid.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The Secret cannot be read or written.
    #[error("keep the certificate in Secret {0}")]
    Secret(String, #[source] kube::Error),
    /// Others write the Secret all the time.
    #[error("Secret {0} changed {ATTEMPTS} times while it was written")]
    Contended(String),
    /// The webhook configuration cannot be read or written.
    #[error("write the authority into MutatingWebhookConfiguration {0}")]
    Configuration(String, #[source] kube::Error),
    /// No certificate can be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Returns the certificate to serve, after the API server knows it.
pub async fn ensure(client: &Client, names: &Names) -> Result<Credentials, CredentialsError> {
    let current = stored(client, names).await?;
    publish(client, names, &current).await?;
    Ok(current)
}

/// The certificate in the Secret, which is written if there is none or it has to be renewed. The Secret itself is part of the
/// installation, and goes with it.
async fn stored(client: &Client, names: &Names) -> Result<Credentials, CredentialsError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &names.namespace);
    let failed = |error| CredentialsError::Secret(names.secret.clone(), error);
    for _ in 0..ATTEMPTS {
        let secret = api.get(&names.secret).await.map_err(failed)?;
        let now = Timestamp::now();
        // One that somebody damaged is replaced at once, as is one of another installation.
        let current = read(&secret).filter(|current| current.is_usable(&names.server, now));
        if let Some(current) = current.as_ref().filter(|current| now < current.renewal) {
            return Ok(current.clone());
        }
        let former = current.map(|current| current.certificate);
        let wanted = write(secret, certificate::make(&names.server, now)?, former);
        match api.replace(&names.secret, &PostParams::default(), &wanted).await {
            Ok(written) => {
                if let Some(written) = read(&written) {
                    return Ok(written);
                }
            }
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(CredentialsError::Contended(names.secret.clone()))
}

fn read(secret: &Secret) -> Option<Credentials> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    let renewal = secret.annotations().get(RENEWAL).and_then(|time| time.parse().ok());
    let renewal = renewal.unwrap_or(Timestamp::UNIX_EPOCH);
    Some(Credentials { certificate: text(CERTIFICATE)?, key: text(KEY)?, renewal, former: text(FORMER) })
}

fn write(mut secret: Secret, made: Certificate, former: Option<String>) -> Secret {
    secret.annotations_mut().insert(RENEWAL.to_owned(), made.renewal.to_string());
    let entries = [(CERTIFICATE, Some(made.certificate)), (KEY, Some(made.key)), (FORMER, former)];
    let data = entries.into_iter().filter_map(|(key, text)| Some((key, text?)));
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    secret.data = Some(data.collect::<BTreeMap<_, _>>());
    secret
}

/// Writes the authority where the API server looks for it, unless it is there.
async fn publish(client: &Client, names: &Names, current: &Credentials) -> Result<(), CredentialsError> {
    let name = &names.configuration;
    let failed = |error| CredentialsError::Configuration(name.clone(), error);
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configuration = api.get(name).await.map_err(failed)?;
    let bundle = [Some(current.certificate.as_str()), current.former.as_deref()];
    let bundle = ByteString(bundle.into_iter().flatten().collect::<String>().into_bytes());
    let mut operations = Vec::new();
    for (index, webhook) in configuration.webhooks.iter().flatten().enumerate() {
        if webhook.client_config.ca_bundle.as_ref() != Some(&bundle) {
            // The test keeps the patch from a webhook that took this one's place meanwhile.
            operations.push(
                json!({"op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook.name}),
            );
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            operations.push(json!({"op": "add", "path": path, "value": bundle}));
        }
    }
    if operations.is_empty() {
        return Ok(());
    }
    let patch: JsonPatch =
        serde_json::from_value(operations.into()).map_err(|error| failed(kube::Error::SerdeError(error)))?;
    api.patch(name, &PatchParams::default(), &Patch::Json::<()>(patch)).await.map_err(failed)?;
    tracing::info!(configuration = name, "the API server knows the certificate");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Certificate {
        certificate::make(&["x".to_owned()], Timestamp::now()).unwrap()
    }

    #[test]
    fn a_renewal_remembers_the_former_certificate_and_keeps_what_others_wrote() {
        let first = made();
        let mut secret = write(Secret::default(), first.clone(), None);
        let stored = read(&secret).unwrap();
        assert_eq!((&stored.certificate, &stored.key), (&first.certificate, &first.key));
        assert_eq!(stored.former, None);
        secret.labels_mut().insert("theirs".to_owned(), "kept".to_owned());
        let second = made();
        let secret = write(secret, second.clone(), Some(first.certificate.clone()));
        let renewed = read(&secret).unwrap();
        assert_eq!((renewed.certificate, renewed.former), (second.certificate, Some(first.certificate)));
        assert_eq!(secret.labels()["theirs"], "kept");
    }

    #[test]
    fn a_certificate_of_other_names_and_an_expired_one_are_not_usable() {
        let now = Timestamp::now();
        let current = read(&write(Secret::default(), made(), None)).unwrap();
        let usable = |servers: &[&str], now| {
            current.is_usable(&servers.iter().map(|&server| server.to_owned()).collect::<Vec<_>>(), now)
        };
        assert!(usable(&["x"], now));
        assert!(!usable(&["x", "macvtap-webhook.other.svc"], now));
        assert!(!usable(&["x"], now + std::time::Duration::from_hours(2400)));
    }

    #[test]
    fn without_its_time_a_certificate_is_renewed_now() {
        let mut secret = write(Secret::default(), made(), None);
        secret.annotations_mut().remove(RENEWAL);
        assert_eq!(read(&secret).unwrap().renewal, Timestamp::UNIX_EPOCH);
        assert_eq!(read(&Secret::default()), None);
    }
}

//! `macvtap-operator webhook`: adds the device that a pod's networks need to the pod's limits, as network-resources-injector
//! does, for networks of this project's CNI plugin.
//!
//! It runs in pods of its own: nothing here depends on who leads, and a pod that is created waits for nothing else.

pub mod certificate;
pub mod credentials;
pub mod inject;
pub mod networks;
pub mod pod;
pub mod resource;
pub mod review;
pub mod serve;

use crate::args::Webhook;
use crate::run::cluster;
use crate::{admin, refusal};
use anyhow::Context as _;
use certificate::Tls;
use credentials::{Credentials, Names};
use kube::Client;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the certificate and the webhook configuration are compared with what they should be.
const CHECK: Duration = Duration::from_mins(1);

/// How soon that is tried again after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Serves until the shutdown.
pub async fn run(args: Webhook, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = admin::listen(args.listen).await?;
    let config = cluster().await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("make a client")?;
    let names = Names::new(&args, namespace);
    let (sender, receiver) = watch::channel(None);
    let renewal = renew(client.clone(), names, sender);
    tokio::select! {
        () = renewal => Ok(()),
        () = serve::serve(listener, receiver, client, shutdown) => Ok(()),
    }
}

/// Keeps the certificate valid and known to the API server, and hands each new one to the server.
async fn renew(client: Client, names: Names, sender: watch::Sender<Option<Tls>>) {
    let mut served: Option<Credentials> = None;
    loop {
        let pause = match credentials::ensure(&client, &names).await {
            Ok(current) if served.as_ref() == Some(&current) => CHECK,
            Ok(current) => match certificate::tls(&current.certificate, &current.key) {
                Ok(tls) => {
                    sender.send_replace(Some(tls));
                    tracing::info!(renewal = %current.renewal, "serving with a certificate");
                    served = Some(current);
                    CHECK
                }
                Err(error) => failed(&error),
            },
            Err(error) => failed(&error),
        };
        tokio::time::sleep(pause).await;
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Duration {
    let error = refusal::chain(error);
    tracing::warn!(error, "the certificate cannot be kept valid, trying again");
    RETRY
}

//! The way to the API server, and reading lists from it.

use crate::args::Connection;
use anyhow::{Context as _, Result, anyhow};
use kube::api::{ListParams, ObjectList};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use macvtap_operator::refusal;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;

/// How long the API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the API server may be silent during an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Objects of a list that are read at once.
const PAGE: u32 = 500;

/// A cluster and the user's rights in it.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// Client with the user's credentials.
    pub(crate) client: Client,
    /// Where the API server is.
    pub(crate) address: String,
    /// Namespace of the context.
    pub(crate) namespace: String,
}

/// The result of reading something.
pub(crate) type Read<T> = Result<T, Unread>;

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// The object or its kind does not exist.
    Absent,
    /// The user may not read it.
    Forbidden(String),
    /// Anything else.
    Failed(String),
}

impl Unread {
    /// Why not, for people.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Absent => "it does not exist",
            Self::Forbidden(message) | Self::Failed(message) => message,
        }
    }
}

impl From<kube::Error> for Unread {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 404 => Self::Absent,
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                Self::Forbidden(status.message.clone())
            }
            other => Self::Failed(refusal::text(other)),
        }
    }
}

impl Cluster {
    /// Finds the cluster that the user means.
    pub(crate) async fn find(connection: &Connection) -> Result<Self> {
        let options =
            KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&connection.kubeconfig, &connection.context) {
            (Some(path), _) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await.context("read the kubeconfig")?
            }
            (None, Some(context)) => {
                let found = Config::from_kubeconfig(&options).await;
                found.with_context(|| format!("find context {context} in the kubeconfig"))?
            }
            (None, None) => Config::infer().await.map_err(|error| {
                anyhow!("find a cluster: {}; set KUBECONFIG or --kubeconfig", refusal::not_found(&error))
            })?,
        };
        Self::at(config)
    }

    fn at(mut config: Config) -> Result<Self> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        let (address, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
        let client = Client::try_from(config).context("prepare the connection to the API server")?;
        Ok(Self { client, address, namespace })
    }
}

/// Reads all objects of a list, page by page.
pub(crate) async fn list<K>(api: Api<K>, mut params: ListParams) -> Read<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page: ObjectList<K> = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            None => return Ok(all),
            Some(token) => params = params.continue_token(&token),
        }
    }
}

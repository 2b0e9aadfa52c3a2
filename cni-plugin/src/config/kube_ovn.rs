//! What a network with kube-ovn's IPAM plugin must contain.

use super::value::{string, wrong};
use crate::protocol::error::CniError;
use crate::settings::Settings;
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};

/// The plugin's file name.
pub const PLUGIN: &str = "kube-ovn";

/// What kube-ovn's part of the configuration says, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeOvn {
    /// The daemon's socket.
    pub socket: PathBuf,
}

/// Judges the `ipam` object: what kube-ovn would take and do harm with is refused.
pub(super) fn judge(ipam: &Map<String, Value>, settings: &Settings) -> Result<KubeOvn, CniError> {
    let want = "<NAD name>.<NAD namespace>, the provider of a kube-ovn Subnet";
    let provider = string(ipam, "ipam.", "provider", want)?.unwrap_or_default();
    let mut parts = provider.split('.');
    let named =
        [parts.next(), parts.next()].into_iter().all(|part| part.is_some_and(|part| !part.is_empty()));
    if !named || parts.next().is_some() {
        return Err(wrong("ipam.provider", &provider.into(), want));
    }
    if provider.ends_with("ovn") {
        let want = "a provider that does not end in \"ovn\", which kube-ovn takes for its own network: use another namespace";
        return Err(wrong("ipam.provider", &provider.into(), want));
    }
    let allowed = settings.socket_directories();
    let shown = allowed.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let want =
        format!("the path of kube-ovn's socket below {shown} (socketDirectories in the node's cni.json)");
    let socket = string(ipam, "ipam.", "server_socket", &want)?.unwrap_or_default();
    let path = Path::new(&socket);
    let plain = path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let below = allowed.iter().any(|directory| path.starts_with(directory) && path != directory);
    if plain && below {
        Ok(KubeOvn { socket: socket.into() })
    } else {
        Err(wrong("ipam.server_socket", &socket.into(), &want))
    }
}

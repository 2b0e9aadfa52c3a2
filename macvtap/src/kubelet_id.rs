//! Which kubelet serves the node. The agent notes it, and each record takes it along: a kubelet that started later may have
//! lost its checkpoint, and is not believed about the pod of that record. IDs are only compared for equality, because the
//! node's clock may go back.

use crate::file::{self, Durability, FileError};
use crate::paths::Paths;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// No note is longer, in bytes.
const SIZE_MAX: u64 = 4 << 10;

/// The kubelet that serves, as the agent has noted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingKubelet {
    /// Its ID.
    pub id: String,
    /// Version of the checkpoint that was there when the agent first saw it: it may be one that this kubelet did not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// Returns the kubelet that the agent noted last, if it noted any.
pub fn read(paths: &Paths) -> Option<ServingKubelet> {
    let text = file::read(&path(paths), SIZE_MAX).ok()??;
    serde_json::from_slice(&text).ok()
}

/// Notes the kubelet that serves.
pub fn write(paths: &Paths, kubelet: &ServingKubelet) -> Result<(), FileError> {
    // Texts always have a form in JSON.
    let text = serde_json::to_vec(kubelet).unwrap_or_default();
    file::replace(&path(paths), &text, Durability::Memory)
}

fn path(paths: &Paths) -> PathBuf {
    paths.run().join("kubelet")
}

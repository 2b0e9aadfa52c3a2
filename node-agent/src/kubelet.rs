//! The kubelet: its device plugin directory, one endpoint per resource in it, and its pod resources.

pub mod answer;
pub mod checkpoint;
pub mod directory;
pub mod endpoint;
pub mod instance;
pub mod podresources;
mod service;
mod shared;
pub mod socket;

pub use shared::{Ledger, Shared};

/// The kubelet's socket in its device plugin directory.
pub const KUBELET_SOCKET: &str = "kubelet.sock";

/// The file beside it in which the kubelet notes which devices pods have.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";

/// The interface version we speak.
pub const VERSION: &str = "v1beta1";

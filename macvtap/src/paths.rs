//! Where things are on a node. These paths are fixed: the chart mounts them and other programs may read them.

use crate::record::DeviceNumber;
use std::path::{Path, PathBuf};

/// The directories agent and plugin share on a node. Tests give each run its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    state: PathBuf,
    run: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self::new("/var/lib/macvtap", "/run/macvtap")
    }
}

impl Paths {
    /// `state` survives a reboot; `run` does not, just as links do not.
    pub fn new(state: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self { state: state.into(), run: run.into() }
    }

    /// What survives a reboot.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What ends with the boot.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The device table, written by the agent.
    pub fn table(&self) -> PathBuf {
        self.state.join("devices.json")
    }

    /// The node's own settings for the plugin, written by the node's administrator (or the chart).
    pub fn cni_settings(&self) -> PathBuf {
        self.state.join("cni.json")
    }

    /// Our device nodes, one per device, named by ifindex in decimal.
    pub fn device_nodes(&self) -> PathBuf {
        self.run.join("dev")
    }

    /// The node of the device with this ifindex.
    pub fn device_node(&self, ifindex: u32) -> PathBuf {
        self.device_nodes().join(ifindex.to_string())
    }

    /// Attachment records, one per device in use, named by device ID.
    pub fn attachments(&self) -> PathBuf {
        self.run.join("attachments")
    }

    /// Which device has which tap number.
    pub fn taps(&self) -> PathBuf {
        self.run.join("taps")
    }

    /// The entry of one tap number: a symbolic link to its device's ID.
    pub fn tap(&self, number: DeviceNumber) -> PathBuf {
        self.taps().join(number.to_string())
    }

    /// Attachments whose addresses are still to be given back, named by container and interface.
    pub fn unreturned(&self) -> PathBuf {
        self.run.join("unreturned")
    }

    /// Lock files: one per device, and the node-wide one.
    pub fn locks(&self) -> PathBuf {
        self.run.join("locks")
    }
}

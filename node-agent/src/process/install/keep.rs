//! Keeps the plugin where the runtime looks for it as long as the agent runs: an update of the node can take the file, or
//! exchange the directory, and then every new pod fails while all else looks well.
//!
//! A container keeps the directory that was mounted when it started. So the directory is looked up again by way of its
//! parent, as the node does it; where that leads elsewhere and out of sight, only a new container sees what the runtime sees.

use super::{PluginName, install, is_executable, serves};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Between looks. A runtime tries a pod without a plugin again, so that this is all that such a pod loses.
const PERIOD: Duration = Duration::from_secs(10);

/// Whether runtimes find the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Why they do not.
    pub missing: Option<String>,
    /// Why the directory is the wrong one, most likely.
    pub doubt: Option<String>,
}

/// The plugin and where it belongs.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The plugin's file.
    pub file: PathBuf,
    /// The names to install it under.
    pub names: &'static [PluginName],
    /// The runtime's directory, under the path that it has on the node.
    pub directory: PathBuf,
    /// Where the node's directories are mounted that one looks it up in.
    pub node_root: Option<PathBuf>,
}

/// Keeps a plugin in its place.
#[derive(Clone, Debug)]
pub struct Keeper {
    plugin: Plugin,
    start: Way,
}

/// What leads to the directory. Another one than when the container started: the directory was exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Way {
    /// The directory's target, where it is a symbolic link.
    target: Option<PathBuf>,
    /// What is mounted for the directory and for its parent; the kernel follows what is renamed or deleted.
    mounted: [Option<String>; 2],
}

impl Keeper {
    /// Notes what leads to the directory now, unless `memory`, a file that lives as long as the container, records what led
    /// there before.
    pub fn new(plugin: Plugin, memory: Option<&Path>) -> Self {
        let noted = memory.and_then(|memory| serde_json::from_slice(&fs::read(memory).ok()?).ok());
        let start = noted.unwrap_or_else(|| {
            let way = plugin.way();
            if let (Some(memory), Ok(text)) = (memory, serde_json::to_vec(&way))
                && let Err(error) = fs::write(memory, text)
            {
                warn!(%error, "the way to the CNI directory is not remembered");
            }
            way
        });
        Self { plugin, start }
    }

    /// Installs the plugin, then checks for ever whether it is there, installs it where it is missing, and publishes the result.
    pub async fn keep(self, presence: watch::Sender<Presence>) {
        let mut first = true;
        loop {
            let Self { plugin, start } = self.clone();
            let look = tokio::task::spawn_blocking(move || plugin.look(&start, first));
            first = false;
            match look.await {
                Ok(found) => publish(&presence, found),
                Err(failure) => error!(%failure, "CNI plugin not looked for"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

impl Plugin {
    fn look(&self, start: &Way, first: bool) -> Presence {
        let directory = match self.locate(start) {
            Ok(directory) => directory,
            Err(reason) => return Presence { missing: Some(self.missing(&reason)), doubt: None },
        };
        let version = env!("CARGO_PKG_VERSION");
        for name in self.names {
            let path = directory.join(name.as_str());
            // One of this version is left alone later on: another agent of it may have put it there, which takes over.
            if !first && serves(&path, version) {
                continue;
            }
            match install(&self.file, &directory, *name, version) {
                Ok(result) => info!(path = %path.display(), ?result, "CNI plugin installed"),
                Err(_) if serves(&path, version) => {}
                Err(problem) => {
                    let reason = crate::error_chain(&problem);
                    return Presence { missing: Some(self.missing(&reason)), doubt: None };
                }
            }
        }
        Presence { missing: None, doubt: self.doubt(&directory) }
    }

    fn missing(&self, reason: &str) -> String {
        format!("CNI plugin is not in {}: {reason}", self.directory.display())
    }

    /// Where in this container's sight the runtime's directory is now.
    fn locate(&self, start: &Way) -> Result<PathBuf, String> {
        let Some(root) = &self.node_root else { return Ok(self.directory.clone()) };
        let now = self.way();
        if now.mounted[1] == start.mounted[1] {
            let seen = below(root, &self.directory);
            // As the kubelet does where it mounts it.
            if fs::symlink_metadata(&seen).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                fs::create_dir(&seen).map_err(|error| format!("create the directory: {error}"))?;
            }
            if let Ok(directory) = resolve(root, &self.directory) {
                return Ok(directory);
            }
        }
        if now == *start {
            return Ok(self.directory.clone());
        }
        Err("the directory was exchanged, and this agent still sees the old one; delete the agent's pod"
            .to_owned())
    }

    fn way(&self) -> Way {
        let Some(root) = &self.node_root else { return Way { target: None, mounted: [None, None] } };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let seen = below(root, &self.directory);
        let parent = seen.parent().unwrap_or(root);
        Way {
            target: fs::read_link(&seen).ok(),
            mounted: [mounted(&mounts, &self.directory), mounted(&mounts, parent)],
        }
    }

    /// Runtimes need more plugins than this one, and read one directory in most cases.
    fn doubt(&self, directory: &Path) -> Option<String> {
        let entries = fs::read_dir(directory).ok()?;
        let mut names = entries.flatten().map(|entry| entry.file_name());
        let other = names.any(|name| {
            let ours = self.names.iter().any(|ours| name == ours.as_str());
            !ours && !name.as_encoded_bytes().starts_with(b".") && is_executable(&directory.join(&name))
        });
        (!other).then(|| {
            format!(
                "no other CNI plugin is in {}: the runtime reads another directory, most likely; set agent.cniBinDir to it",
                self.directory.display()
            )
        })
    }
}

fn publish(presence: &watch::Sender<Presence>, found: Presence) {
    presence.send_if_modified(|before| {
        if *before == found {
            return false;
        }
        match (&found.missing, &found.doubt) {
            (Some(reason), _) => error!(%reason, "no new pod can have a network of ours"),
            (None, Some(reason)) => warn!(%reason, "CNI plugin is in a doubtful place"),
            (None, None) => info!("CNI plugin is in place"),
        }
        *before = found;
        true
    });
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Follows a path as one whose root this is does: symbolic links lead to what the node finds there.
fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let found = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found)))
}

/// What of its file system is mounted at this place.
fn mounted(mounts: &str, place: &Path) -> Option<String> {
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (Path::new(at) == place).then(|| root.to_owned())
    })
}

#[cfg(test)]
mod tests;

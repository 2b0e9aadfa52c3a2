//! Which kubelet serves: known by the socket that it made, and noted for the records.

use super::{CHECKPOINT, KUBELET_SOCKET};
use macvtap::kubelet_id::{self, ServingKubelet};
use macvtap::paths::Paths;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tracing::warn;

/// Held while the note is replaced: containers start at once, and each start may be the first to see a new kubelet.
static NOTING: Mutex<()> = Mutex::new(());

/// Returns the kubelet that serves, and notes it if it was not seen before. None while no kubelet has a socket.
pub fn observe(paths: &Paths, plugins: &Path) -> Option<ServingKubelet> {
    let _noting = NOTING.lock().unwrap_or_else(PoisonError::into_inner);
    let id = version(&plugins.join(KUBELET_SOCKET))?;
    if let Some(noted) = kubelet_id::read(paths).filter(|noted| noted.id == id) {
        return Some(noted);
    }
    let kubelet = ServingKubelet { id, checkpoint: version(&plugins.join(CHECKPOINT)) };
    // Records keep the ID of the kubelet before, and so count as older than this one.
    if let Err(error) = kubelet_id::write(paths, &kubelet) {
        let reason = crate::error_chain(&error);
        warn!(%reason, "kubelet not noted");
    }
    Some(kubelet)
}

/// Returns what distinguishes a file from all others that were at its path. Never compared for order: clocks go back.
pub(super) fn version(path: &Path) -> Option<String> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some(format!("{}:{}:{}.{:09}", file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_that_starts_again_is_another_one_and_an_agent_that_does_sees_the_same() {
        let (run, plugins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = Paths::new(run.path(), run.path());
        let observe = || observe(&paths, plugins.path());
        assert_eq!(observe(), None);
        let (socket, checkpoint) = (plugins.path().join(KUBELET_SOCKET), plugins.path().join(CHECKPOINT));
        std::fs::write(&socket, "").unwrap();
        let first = observe().unwrap();
        assert_eq!(first.checkpoint, None);
        // It was written by this kubelet, since it was not there at first.
        std::fs::write(&checkpoint, "{}").unwrap();
        assert_eq!(observe(), Some(first.clone()));
        let next = plugins.path().join("next");
        std::fs::write(&next, "").unwrap();
        std::fs::rename(next, &socket).unwrap();
        let second = observe().unwrap();
        assert_ne!(second.id, first.id);
        assert_eq!(second.checkpoint, version(&checkpoint));
        assert_eq!(kubelet_id::read(&paths), Some(second));
    }
}

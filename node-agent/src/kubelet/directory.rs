//! Watches the kubelet's device plugin directory: a new kubelet makes its socket there and removes everybody else's.

use super::KUBELET_SOCKET;
use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// What happened in the directory since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// How often the kubelet's socket was made.
    pub kubelet_starts: u64,
    /// How often a socket of ours may have been removed.
    pub removals: u64,
}

/// Between looks for a directory that is not there yet.
const MISSING: Duration = Duration::from_millis(50);

/// Between looks at a directory that cannot be watched: the node is out of inotify instances.
const POLL: Duration = Duration::from_secs(1);

/// Follows the directory for ever.
pub async fn watch(directory: PathBuf, happened: watch::Sender<Happened>) {
    let mut seen = Stamp::of(&directory);
    let mut logged = false;
    loop {
        if let Err(error) = follow(&directory, &happened, &mut seen).await
            && !std::mem::replace(&mut logged, true)
        {
            let directory = directory.display();
            warn!(%directory, %error, "device plugin directory not watched: it is looked at every second; is fs.inotify.max_user_instances exhausted?");
        }
        tokio::time::sleep(if directory.exists() { POLL } else { MISSING }).await;
        compare(&directory, &happened, &mut seen);
    }
}

async fn follow(directory: &Path, happened: &watch::Sender<Happened>, seen: &mut Stamp) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(directory, mask)?;
    // What happened before there was a watch.
    compare(directory, happened, seen);
    let mut events = inotify.into_event_stream([0; 4096])?;
    while let Some(event) = events.next().await {
        let event = event?;
        if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let appeared = event.mask.intersects(EventMask::CREATE | EventMask::MOVED_TO);
        let kubelet = event.name.as_deref().is_some_and(|name| name == KUBELET_SOCKET);
        let lost = event.mask.contains(EventMask::Q_OVERFLOW);
        *seen = Stamp::of(directory);
        happened.send_if_modified(|happened| {
            happened.kubelet_starts += u64::from(lost || (appeared && kubelet));
            happened.removals += u64::from(lost || (!appeared && !kubelet));
            lost || appeared == kubelet
        });
    }
    Ok(())
}

/// A file's inode and the times of its last change: what distinguishes it from the next one of its name.
type FileChange = (u64, i64, i64);

/// The directory as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    socket: Option<FileChange>,
    entries: Option<FileChange>,
}

impl Stamp {
    fn of(directory: &Path) -> Self {
        Self { socket: change(&directory.join(KUBELET_SOCKET)), entries: change(directory) }
    }
}

fn change(path: &Path) -> Option<FileChange> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

fn compare(directory: &Path, happened: &watch::Sender<Happened>, seen: &mut Stamp) {
    let now = Stamp::of(directory);
    let before = std::mem::replace(seen, now);
    happened.send_if_modified(|happened| {
        happened.kubelet_starts += u64::from(now.socket.is_some() && now.socket != before.socket);
        happened.removals += u64::from(now.entries != before.entries);
        now != before
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_looked_at_counts_changes_only() {
        let dir = tempfile::tempdir().unwrap();
        let (happened, mut changes) = watch::channel(Happened::default());
        let mut seen = Stamp::of(dir.path());
        let mut look = || {
            compare(dir.path(), &happened, &mut seen);
            changes.has_changed().unwrap().then(|| *changes.borrow_and_update())
        };
        assert_eq!(look(), None);
        std::fs::write(dir.path().join(KUBELET_SOCKET), "").unwrap();
        assert_eq!(look(), Some(Happened { kubelet_starts: 1, removals: 1 }));
        assert_eq!(look(), None);
        std::fs::write(dir.path().join("other.sock"), "").unwrap();
        assert_eq!(look(), Some(Happened { kubelet_starts: 1, removals: 2 }));
    }
}

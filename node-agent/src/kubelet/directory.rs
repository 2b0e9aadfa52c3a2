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

/// Between looks at a directory that cannot be watched: it is not there yet, or the node is out of inotify instances.
const POLL: Duration = Duration::from_millis(50);

/// Follows the directory for ever.
pub async fn watch(directory: PathBuf, happened: watch::Sender<Happened>) {
    let mut seen = socket_stamp(&directory);
    let mut told = false;
    loop {
        if let Err(error) = follow(&directory, &happened, &mut seen).await
            && !std::mem::replace(&mut told, true)
        {
            warn!(directory = %directory.display(), %error, "device plugin directory not watched, looking every 50 ms");
        }
        tokio::time::sleep(POLL).await;
        compare(&directory, &happened, &mut seen);
    }
}

async fn follow(
    directory: &Path,
    happened: &watch::Sender<Happened>,
    seen: &mut Option<Stamp>,
) -> io::Result<()> {
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
        *seen = socket_stamp(directory);
        happened.send_if_modified(|happened| {
            happened.kubelet_starts += u64::from(lost || (appeared && kubelet));
            happened.removals += u64::from(lost || (!appeared && !kubelet));
            lost || appeared == kubelet
        });
    }
    Ok(())
}

/// What tells one kubelet's socket from the next one's.
type Stamp = (u64, i64, i64);

fn socket_stamp(directory: &Path) -> Option<Stamp> {
    let metadata = std::fs::symlink_metadata(directory.join(KUBELET_SOCKET)).ok()?;
    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

fn compare(directory: &Path, happened: &watch::Sender<Happened>, seen: &mut Option<Stamp>) {
    let now = socket_stamp(directory);
    let before = std::mem::replace(seen, now);
    happened.send_modify(|happened| {
        happened.kubelet_starts += u64::from(now.is_some() && now != before);
        happened.removals += 1;
    });
}

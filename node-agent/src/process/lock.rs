//! One agent serves a node. A second one on the same state directory (during an upgrade) waits until the first is gone.

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Held for as long as this lives.
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

/// The lock could not be taken, nor waited for.
#[derive(Debug, thiserror::Error)]
#[error("lock {}", path.display())]
pub struct NodeLockError {
    /// The file.
    path: PathBuf,
    /// Why not.
    #[source]
    source: io::Error,
}

/// What the holder has.
const LOCK: &str = "agent.lock";

/// What who waits for it has.
const WAITING: &str = "agent.standby";

/// Takes the lock if it is free.
pub fn try_take(state: &Path) -> Result<Option<NodeLock>, NodeLockError> {
    try_lock(state, LOCK)
}

/// Whether another agent waits for the lock.
pub fn successor_waits(state: &Path) -> bool {
    matches!(try_lock(state, WAITING), Ok(None))
}

fn try_lock(state: &Path, name: &str) -> Result<Option<NodeLock>, NodeLockError> {
    match take(state, name, FlockOperation::NonBlockingLockExclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.source.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits for the lock. Blocks the thread. Calls back once the holder can know that it has a successor.
pub fn wait(state: &Path, known: impl FnOnce()) -> Result<NodeLock, NodeLockError> {
    // Held while waiting: it shows the holder that there is a successor.
    let _waiting = take(state, WAITING, FlockOperation::LockExclusive)?;
    known();
    take(state, LOCK, FlockOperation::LockExclusive)
}

fn take(state: &Path, name: &str, operation: FlockOperation) -> Result<NodeLock, NodeLockError> {
    let path = state.join(name);
    let failed = |source| NodeLockError { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(state).map_err(failed)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    // A pipe in its place would hold the agent up without a word.
    let open = options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&path);
    let file = open.map_err(failed)?;
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(NodeLock { _file: file }),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_gets_it_when_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = try_take(dir.path()).unwrap().unwrap();
        assert!(try_take(dir.path()).unwrap().is_none());
        let state = dir.path().to_owned();
        assert!(!successor_waits(dir.path()));
        let second = std::thread::spawn(move || wait(&state, || ()).unwrap());
        while !successor_waits(dir.path()) {
            std::thread::yield_now();
        }
        drop(first);
        drop(second.join().unwrap());
        assert!(try_take(dir.path()).unwrap().is_some());
        assert!(!successor_waits(dir.path()));
    }
}

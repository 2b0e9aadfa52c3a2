//! Locks between processes: one per device, and one for the whole node.
//!
//! `flock` on a file in [`Paths::locks`]: the kernel releases it when its holder dies, so a lock that is free while
//! its device's record says `Creating` means that the maker was killed. Lock files stay: removing one while another
//! process waits on it would give two processes a lock each. On a tmpfs they cost an inode.
//!
//! Order: device lock first, node lock second; nobody takes two device locks.

use crate::device_id::DeviceId;
use crate::file::{self, FileError};
use crate::paths::Paths;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// No device has this name: it contains no separator.
const NODE: &str = "node";

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just starting has a copy of the descriptor until it
        // executes its program. An error would mean that this is not a lock any more.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// A lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock file could not be opened.
    #[error("lock")]
    File(#[from] FileError),
    /// The kernel refused the lock.
    #[error("lock {}", path.display())]
    Flock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// Waits for the lock of a device. Holders keep it for one ADD or DEL.
pub fn device(paths: &Paths, device: &DeviceId) -> Result<Lock, LockError> {
    let (file, path) = open(paths, &device.to_string())?;
    take(file, path, FlockOperation::LockExclusive)
}

/// Takes the lock of a device if nobody holds it; none when somebody does.
pub fn try_device(paths: &Paths, device: &DeviceId) -> Result<Option<Lock>, LockError> {
    let (file, path) = open(paths, &device.to_string())?;
    match take(file, path, FlockOperation::NonBlockingLockExclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Flock { source: Errno::WOULDBLOCK, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits for the node-wide lock, which every decision about tap minors holds for a few milliseconds.
pub fn node(paths: &Paths) -> Result<Lock, LockError> {
    let (file, path) = open(paths, NODE)?;
    take(file, path, FlockOperation::LockExclusive)
}

/// Whether a device was ever worked on in this boot: lock files stay.
pub(crate) fn was_taken(paths: &Paths, device: &DeviceId) -> bool {
    paths.locks().join(device.to_string()).exists()
}

fn open(paths: &Paths, name: &str) -> Result<(File, PathBuf), FileError> {
    let directory = paths.locks();
    let path = directory.join(name);
    // Not truncated: the content means nothing.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed());
    let open = || options.open(&path).map_err(file::failed("open", &path));
    let file = match file::within(&directory, open) {
        // Of what is not a file: it is a directory, a link, or nobody reads the pipe.
        Err(error)
            if matches!(
                Errno::from_io_error(&error.source),
                Some(Errno::ISDIR | Errno::LOOP | Errno::NXIO)
            ) =>
        {
            file::make_way(&path)?;
            open()?
        }
        opened => opened?,
    };
    Ok((file, path))
}

fn take(file: File, path: PathBuf, operation: FlockOperation) -> Result<Lock, LockError> {
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Lock { file }),
            Err(Errno::INTR) => {}
            Err(source) => return Err(LockError::Flock { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_locked_for_one_holder_at_a_time_and_others_stay_free() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let (a, b) = ("aMvp0".parse().unwrap(), "aMvp1".parse().unwrap());
        let held = device(&paths, &a).unwrap();
        assert!(try_device(&paths, &a).unwrap().is_none());
        assert!(try_device(&paths, &b).unwrap().is_some());
        drop(held);
        assert!(try_device(&paths, &a).unwrap().is_some());
    }

    #[test]
    fn what_is_in_place_of_a_lock_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let a = "aMvp0".parse().unwrap();
        file::make_directory(&paths.locks()).unwrap();
        let path = paths.locks().join("aMvp0");
        std::fs::create_dir(&path).unwrap();
        drop(device(&paths, &a).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        let _held = device(&paths, &a).unwrap();
        assert!(path.symlink_metadata().unwrap().is_file() && !path.with_file_name("elsewhere").exists());
        assert!(try_device(&paths, &a).unwrap().is_none());
    }
}

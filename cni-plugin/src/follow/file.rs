//! The file of a follower: its content is what it follows, its lock is held as long as it runs.
//!
//! The directory's own lock is held while a file gets or loses its name, so that a file that has a name and no lock is
//! one whose follower has ended.

use super::{FollowError, Following, directory};
use macvtap::device_id::DeviceId;
use macvtap::file::{make_directory, open, remove_one};
use macvtap::paths::Paths;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Returns the path of a device's file.
pub(super) fn path(paths: &Paths, device: &DeviceId) -> PathBuf {
    directory(paths).join(device.to_string())
}

fn failed<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl Fn(E) -> FollowError {
    move |error| FollowError::File { step, path: path.to_owned(), source: error.into() }
}

fn lock_directory(paths: &Paths) -> Result<File, FollowError> {
    let path = directory(paths);
    make_directory(&path).map_err(|error| failed("create", &path)(error.source))?;
    let directory = File::open(&path).map_err(failed("open", &path))?;
    retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive)).map_err(failed("lock", &path))?;
    Ok(directory)
}

/// Writes the file of a new follower, in place of a former one's, and returns it locked.
pub(super) fn create(paths: &Paths, device: &DeviceId, following: &Following) -> Result<File, FollowError> {
    let path = path(paths, device);
    let _directory = lock_directory(paths)?;
    remove_one(&path).map_err(|error| failed("replace", &path)(error.source))?;
    let mut file = File::create_new(&path).map_err(failed("create", &path))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(failed("lock", &path))?;
    let content = serde_json::to_vec(following).map_err(failed("write", &path))?;
    file.write_all(&content).map_err(failed("write", &path))?;
    Ok(file)
}

/// Returns the file of a follower that has ended, locked, with its content; no content if its writer was killed, and
/// nothing at all where the follower runs or has removed it.
pub(super) fn orphaned(
    paths: &Paths,
    device: &DeviceId,
) -> Result<Option<(Option<Following>, File)>, FollowError> {
    let path = path(paths, device);
    let _directory = lock_directory(paths)?;
    let mut file = match open(&path) {
        // Not a follower's.
        Err(error) if error.is_not_a_file() => {
            remove_one(&path).map_err(|error| failed("remove", &path)(error.source))?;
            return Ok(None);
        }
        opened => match opened.map_err(|error| failed("open", &path)(error.source))? {
            Some(file) => file,
            None => return Ok(None),
        },
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked.map_err(failed("lock", &path))?,
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(failed("read", &path))?;
    Ok(Some((serde_json::from_slice(&content).ok(), file)))
}

/// Removes this very file; another one that has its name by now stays.
pub(super) fn remove(paths: &Paths, device: &DeviceId, file: &File) -> Result<(), FollowError> {
    let path = path(paths, device);
    let _directory = lock_directory(paths)?;
    let own = file.metadata().map_err(failed("read", &path))?;
    match fs::metadata(&path) {
        Ok(named) if named.ino() == own.ino() => fs::remove_file(&path).map_err(failed("remove", &path)),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// Returns the locked file that this process was given as standard input, and its content.
pub(super) fn inherited(path: &Path) -> Result<(Following, File), FollowError> {
    let given = io::stdin().as_fd().try_clone_to_owned().map_err(failed("open", path))?;
    let mut file = File::from(given);
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| FollowError::Taken(path.to_owned()))?;
    file.rewind().map_err(failed("read", path))?;
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(failed("read", path))?;
    let following = serde_json::from_slice(&content).map_err(failed("read", path))?;
    Ok((following, file))
}

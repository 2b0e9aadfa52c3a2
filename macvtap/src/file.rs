//! Replacing a small file as a whole, so that no reader ever sees half of it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Room for most of our files, so that one read gets them.
const USUAL_SIZE: usize = 8 << 10;

/// What must be on the disk when [`replace`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The new content, also after a power cut.
    Disk,
    /// Nothing: the file lies on a tmpfs.
    Memory,
}

/// A step on a file failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub struct FileError {
    /// What was being done, as the beginning of a sentence.
    pub step: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

/// Puts `content` in place of `path`: temporary file beside it, (fsync,) rename, (fsync of the directory). On error
/// the old file is as it was and the temporary one is gone. Missing directories are made, for root only.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let temporary = temporary_beside(path);
    let written = within(directory, || write_new(&temporary, content, durability))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("rename to", path)));
    if written.is_err() {
        // The reason to report is the first one.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    match durability {
        Durability::Disk => {
            File::open(directory).and_then(|d| d.sync_all()).map_err(failed("fsync directory", directory))
        }
        Durability::Memory => Ok(()),
    }
}

/// The file's content, at most `limit` bytes; none when there is no such file.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut content = Vec::with_capacity(USUAL_SIZE);
    file.take(limit + 1).read_to_end(&mut content).map_err(failed("read", path))?;
    if content.len() as u64 > limit {
        let too_long = io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes"));
        return Err(failed("read", path)(too_long));
    }
    Ok(Some(content))
}

/// Removes the file and what a killed writer of it left; succeeds when there is neither.
pub fn remove(path: &Path) -> Result<(), FileError> {
    remove_one(&temporary_beside(path))?;
    remove_one(path)
}

/// Removes one file; succeeds when there is none.
pub(crate) fn remove_one(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Does `work` inside a directory, which is made if that is what it misses: almost always it is there.
pub(crate) fn within<T>(directory: &Path, work: impl Fn() -> Result<T, FileError>) -> Result<T, FileError> {
    match work() {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
            make_directory(directory)?;
            work()
        }
        done => done,
    }
}

/// Makes a directory and its parents, mode 0755: readable to the person who looks, writable to root.
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("create directory", path))
}

/// A hidden name beside `path`: always the same, so that a killed writer leaves one file at most, which the next
/// writer overwrites. The caller holds a lock for the file that it replaces.
pub(crate) fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Names step and file in an I/O error.
pub(crate) fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { step, path, source }
}

fn write_new(path: &Path, content: &[u8], durability: Durability) -> Result<(), FileError> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = open.map_err(failed("create", path))?;
    file.write_all(content).map_err(failed("write", path))?;
    match durability {
        Durability::Disk => file.sync_all().map_err(failed("fsync", path)),
        Durability::Memory => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        replace(&path, b"old", Durability::Disk).unwrap();
        // A directory under the temporary name makes the write fail.
        fs::create_dir(temporary_beside(&path)).unwrap();
        replace(&path, b"new", Durability::Disk).unwrap_err();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"old");
    }

    #[test]
    fn a_file_over_the_limit_is_an_error_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/a");
        assert!(read(&path, 3).unwrap().is_none());
        replace(&path, b"1234", Durability::Memory).unwrap();
        assert!(read(&path, 3).is_err());
        assert_eq!(read(&path, 4).unwrap().unwrap(), b"1234");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}

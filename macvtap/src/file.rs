//! Replacing a small file as a whole, so that no reader ever sees half of it.
//!
//! Only root writes to the directories of these files. Whatever else is in place of one (an empty directory that a runtime
//! made for a mount, a pipe, a link) holds nobody up, is not followed when something is written, and makes way.

use rustix::fs::{Mode, OFlags};
use rustix::process::umask;
use std::fs::{self, DirBuilder, File, FileType, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The mode mask of what this process makes: readable to all, writable to root.
const MASK: Mode = Mode::WGRP.union(Mode::WOTH);

/// Gives what this process makes from now on the modes that it asks for, whatever mask the caller has set. Returns the
/// caller's mask.
pub fn set_mask() -> Mode {
    umask(MASK)
}

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

/// What is in place of a file.
#[derive(Debug, thiserror::Error)]
#[error("it is {0}, not a file; remove it")]
struct NotAFile(&'static str);

impl FileError {
    /// Whether something else is in place of the file, which so has no content.
    pub fn is_not_a_file(&self) -> bool {
        self.source.get_ref().is_some_and(|source| source.downcast_ref::<NotAFile>().is_some())
    }
}

/// Puts `content` in place of `path`: temporary file beside it, (fsync,) rename, (fsync of the directory). On error
/// the old file is as it was and the temporary one is gone. Missing directories are made, for root only.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let temporary = temporary_beside(path);
    let written = within(directory, || write_new(&temporary, content, durability))
        .and_then(|()| rename(&temporary, path));
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
    let Some(file) = open(path)? else { return Ok(None) };
    let mut content = Vec::with_capacity(USUAL_SIZE);
    file.take(limit + 1).read_to_end(&mut content).map_err(failed("read", path))?;
    if content.len() as u64 > limit {
        let too_long = io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes"));
        return Err(failed("read", path)(too_long));
    }
    Ok(Some(content))
}

/// Opens a file for reading; none when there is none. What is not a file is an error: a pipe would hold its reader up.
pub fn open(path: &Path) -> Result<Option<File>, FileError> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed("open", path)(in_place_of(path).unwrap_or(error))),
    };
    let kind = file.metadata().map_err(failed("open", path))?.file_type();
    if kind.is_file() { Ok(Some(file)) } else { Err(failed("open", path)(not_a_file(kind))) }
}

/// Returns a description of what is at `path`, if it is not a file.
fn in_place_of(path: &Path) -> Option<io::Error> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    (!kind.is_file()).then(|| not_a_file(kind))
}

fn not_a_file(kind: FileType) -> io::Error {
    let what = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_symlink() => "a symbolic link",
        _ => "a device node",
    };
    io::Error::new(io::ErrorKind::InvalidData, NotAFile(what))
}

/// Removes what is in place of a file that is about to be written, unless it is a file.
pub(crate) fn make_way(path: &Path) -> Result<(), FileError> {
    match in_place_of(path) {
        Some(_) => remove_one(path),
        None => Ok(()),
    }
}

/// Puts a file in place of whatever is at `path`.
pub fn rename(from: &Path, path: &Path) -> Result<(), FileError> {
    match fs::rename(from, path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            remove_one(path)?;
            fs::rename(from, path).map_err(failed("rename to", path))
        }
        renamed => renamed.map_err(failed("rename to", path)),
    }
}

/// Removes the file and what a killed writer of it left; succeeds when there is neither.
pub fn remove(path: &Path) -> Result<(), FileError> {
    remove_one(&temporary_beside(path))?;
    remove_one(path)
}

/// Removes one file, or an empty directory in its place; succeeds when there is none.
pub fn remove_one(path: &Path) -> Result<(), FileError> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let full = NotAFile("a directory with content");
            Err(failed("remove", path)(io::Error::new(io::ErrorKind::InvalidData, full)))
        }
        Err(error) if !is_absent(&error) => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether there is no file: of a name that is too long there never was one, and in what is not a directory there is none.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | InvalidFilename | NotADirectory)
}

/// Does `work` inside a directory, which is made if that is what it misses: almost always it is there.
pub(crate) fn within<T>(directory: &Path, work: impl Fn() -> Result<T, FileError>) -> Result<T, FileError> {
    match work() {
        Err(error) if is_absent(&error.source) => {
            make_directory(directory)?;
            work()
        }
        done => done,
    }
}

/// Makes a directory and its parents, mode 0755: readable to the person who looks, writable to root. What is in its place
/// and leads to no directory makes way.
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    let create = || DirBuilder::new().recursive(true).mode(0o755).create(path);
    let made = match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove_one(path)?;
            create()
        }
        made => made,
    };
    made.map_err(failed("create directory", path))
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
    // Never opened as it is there: what a killed writer left is removed, and nothing else is followed or waited for.
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove_one(path)?;
            create().map_err(failed("create", path))?
        }
        created => created.map_err(failed("create", path))?,
    };
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
        // A directory with content under the temporary name makes the write fail.
        fs::create_dir_all(temporary_beside(&path).join("x")).unwrap();
        let error = replace(&path, b"new", Durability::Disk).unwrap_err();
        assert!(error.source.to_string().contains("a directory with content, not a file; remove it"));
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"old");
    }

    /// Puts something else in place of a file.
    fn put(kind: &str, path: &Path, elsewhere: &Path) {
        match kind {
            "a directory" => fs::create_dir(path).unwrap(),
            "a pipe" => {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
            "a socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
            _ => std::os::unix::fs::symlink(elsewhere, path).unwrap(),
        }
    }

    #[test]
    fn what_is_in_place_of_a_file_holds_nobody_up_is_not_followed_and_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("a"), dir.path().join("elsewhere"));
        fs::write(&elsewhere, b"other").unwrap();
        for kind in ["a directory", "a pipe", "a socket", "a symbolic link"] {
            put(kind, &path, &elsewhere);
            if kind != "a symbolic link" {
                let error = read(&path, 10).unwrap_err();
                assert!(error.is_not_a_file(), "{kind}: {error:?}");
                assert_eq!(error.source.to_string(), format!("it is {kind}, not a file; remove it"));
            }
            put(kind, &temporary_beside(&path), &elsewhere);
            replace(&path, b"new", Durability::Memory).unwrap();
            assert!(path.symlink_metadata().unwrap().is_file(), "{kind}");
            assert_eq!(read(&path, 10).unwrap().unwrap(), b"new", "{kind}");
            remove(&path).unwrap();
            put(kind, &path, &elsewhere);
            make_way(&path).unwrap();
            assert!(path.symlink_metadata().is_err(), "{kind}");
        }
        assert_eq!(fs::read(&elsewhere).unwrap(), b"other");
    }

    #[test]
    fn what_is_in_place_of_a_directory_holds_no_file_and_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("files");
        let path = directory.join("a");
        for kind in ["a file", "a pipe", "a socket", "a symbolic link"] {
            match kind {
                "a file" => fs::write(&directory, b"x").unwrap(),
                kind => put(kind, &directory, Path::new("/no/such/directory")),
            }
            assert!(read(&path, 10).unwrap().is_none(), "{kind}");
            remove(&path).unwrap();
            replace(&path, b"new", Durability::Memory).unwrap();
            assert_eq!(read(&path, 10).unwrap().unwrap(), b"new", "{kind}");
            fs::remove_dir_all(&directory).unwrap();
        }
        // A link that leads to a directory is one.
        fs::create_dir(dir.path().join("other")).unwrap();
        put("a symbolic link", &directory, &dir.path().join("other"));
        replace(&path, b"new", Durability::Memory).unwrap();
        assert!(dir.path().join("other/a").exists());
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

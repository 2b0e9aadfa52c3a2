//! Sockets of ours in a directory that others use too: the names of the resources' ones, and the end of those that nobody
//! serves any more.

use macvtap::device_id::ResourceName;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// What every socket of a resource is called first.
pub const PREFIX: &str = "mvt-";

/// No socket was made. Names the directory: the socket's own name is another one at every try, and a reader of the reason
/// should not take each for news.
#[derive(Debug, thiserror::Error)]
#[error("make a socket in {}", directory.display())]
pub(super) struct BindError {
    directory: PathBuf,
    #[source]
    source: io::Error,
}

/// Makes a socket for the resource, under a name that none had before.
pub(super) fn bind(directory: &Path, resource: &ResourceName) -> Result<(PathBuf, UnixListener), BindError> {
    let path = directory.join(name(resource));
    let listener =
        UnixListener::bind(&path).map_err(|source| BindError { directory: directory.to_owned(), source })?;
    Ok((path, listener))
}

/// `mvt-<8 hex digits of the resource>-<8 of this socket>.sock`: short enough for any resource (107 bytes with the
/// directory), and never an earlier socket's name.
fn name(resource: &ResourceName) -> String {
    let stable = resource
        .as_str()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut random = RandomState::new().build_hasher();
    random.write_u32(std::process::id());
    let instance = random.finish() & 0xffff_ffff;
    format!("{PREFIX}{stable:08x}-{instance:08x}.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_names_fit_are_of_one_resource_and_never_come_again() {
        let resource: ResourceName = "a".repeat(63).parse().unwrap();
        let (one, two) = (name(&resource), name(&resource));
        assert_ne!(one, two);
        assert_eq!(one[..13], two[..13]);
        assert_eq!(one.len(), "mvt-01234567-01234567.sock".len());
        assert!(format!("/var/lib/kubelet/device-plugins/{one}").len() <= 107);
        assert_ne!(one[..13], name(&"b".parse().unwrap())[..13]);
    }

    #[test]
    fn a_socket_that_cannot_be_made_is_told_in_the_same_words_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        let reason = || crate::error_chain(&bind(&nowhere, &"a".parse().unwrap()).unwrap_err());
        assert_eq!(reason(), reason());
        assert!(reason().contains("nowhere"), "{}", reason());
    }
}

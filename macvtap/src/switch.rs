//! The kernel's switches of one link: `/proc/sys/net/<family>/<link>/<name>`.
//!
//! The path shows the network namespace of the thread that opens it, not that of the mount.

use crate::netns::NetnsError;
use std::io;
use std::path::{Path, PathBuf};

/// Where the switches are: in the file system of the process; and where a container whose own is read-only has the node's.
const ROOTS: [&str; 2] = ["/proc/sys/net", "/host/proc/sys/net"];

/// The protocol that a switch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6. A link has its switches only if the kernel has IPv6 and its MTU is 1280 or more.
    Ipv6,
    /// IPv6's neighbour discovery.
    Ipv6Neighbours,
}

/// A switch cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The kernel refused.
    #[error("write {}", path.display())]
    Write {
        /// The switch.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The link's namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

impl SwitchError {
    /// Whether the link has no such switch.
    pub fn is_absent(&self) -> bool {
        self.kind() == Some(io::ErrorKind::NotFound)
    }

    /// Whether this process may not set it.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.kind(), Some(io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied))
    }

    fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Write { source, .. } => Some(source.kind()),
            Self::Netns(_) => None,
        }
    }
}

impl Family {
    fn directory(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4/conf",
            Self::Ipv6 => "ipv6/conf",
            Self::Ipv6Neighbours => "ipv6/neigh",
        }
    }
}

/// Sets a switch of a link in the network namespace of the calling thread.
pub(crate) fn set(family: Family, link: &str, name: &str, value: &str) -> Result<(), SwitchError> {
    let path = |root| Path::new(root).join(family.directory()).join(link).join(name);
    let write = |root| {
        let path = path(root);
        std::fs::write(&path, value).map_err(|source| SwitchError::Write { path, source })
    };
    let [own, nodes] = ROOTS;
    write(own)
        .or_else(|error| if error.is_forbidden() { write(nodes).map_err(|_| error) } else { Err(error) })
}

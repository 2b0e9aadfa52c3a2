//! Network namespaces of pods.

use crate::netlink::{Kind, NetlinkError, Socket};
use netlink_packet_core::{Emitable, NlasIterator};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::fs::{Mode, OFlags, StatFs, fstat, fstatfs, open, stat, statfs};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// `NETNSA_NSID` of `linux/net_namespace.h`, and its value for "none assigned".
const NETNSA_NSID: u16 = 1;
const NOT_ASSIGNED: i32 = -1;

/// An open network namespace. It exists as long as this value does.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    /// The namespace of the thread that opened it: the way back.
    own: OwnedFd,
    path: PathBuf,
    inode: u64,
}

/// A namespace's number as seen from another one. The kernel may give it to another namespace when this one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId(pub i32);

/// A network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is at the path.
    #[error("network namespace {} does not exist", .0.display())]
    Missing(PathBuf),
    /// A step failed.
    #[error("{step} network namespace {}", path.display())]
    Failed {
        /// What was being done.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        errno: Errno,
    },
    /// The path leads to something else.
    #[error("{} is not a network namespace; give the path of one, for example /run/netns/<name>", .0.display())]
    NotNetns(PathBuf),
    /// The namespace is the caller's.
    #[error("{} is the network namespace of the node itself; give a pod's", .0.display())]
    Own(PathBuf),
}

impl Netns {
    /// Opens the namespace at `path`, which must be another one than the caller's.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |step| move |errno| NetnsError::Failed { step, path: path.to_owned(), errno };
        let fd = match open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(NetnsError::Missing(path.to_owned())),
            Err(errno) => return Err(failed("open")(errno)),
        };
        let file_system = fstatfs(&fd).map_err(failed("look at"))?;
        if !is_nsfs(&file_system) {
            return Err(NetnsError::NotNetns(path.to_owned()));
        }
        let this = fstat(&fd).map_err(failed("look at"))?;
        let own = own().map_err(failed("compare with the node's"))?;
        let node = fstat(&own).map_err(failed("compare with the node's"))?;
        if (this.st_dev, this.st_ino) == (node.st_dev, node.st_ino) {
            return Err(NetnsError::Own(path.to_owned()));
        }
        Ok(Self { fd, own, path: path.to_owned(), inode: this.st_ino })
    }

    /// Its inode: unlike a path, never another namespace's while this one exists.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` inside the namespace, on the calling thread, which is back where the namespace was opened when this
    /// returns; other threads stay where they are. Not a thread of its own: on a busy machine, handing over to it and back takes longer
    /// than everything else an ADD does (measured: 4 ms).
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let failed = |step| move |errno| NetnsError::Failed { step, path: self.path.clone(), errno };
        match move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network)) {
            Ok(()) => {}
            // Another kind of namespace.
            Err(Errno::INVAL) => return Err(NetnsError::NotNetns(self.path.clone())),
            Err(errno) => return Err(failed("enter")(errno)),
        }
        let way_back = WayBack(Some(self.own.as_fd()));
        let result = work();
        way_back.take().map_err(failed("come back from"))?;
        Ok(result)
    }

    /// Its number as seen from the namespace of `socket`, which gets one assigned when it has none.
    pub fn id(&self, socket: &mut Socket) -> Result<NetnsId, NetlinkError> {
        if let Some(id) = self.assigned_id(socket)? {
            return Ok(id);
        }
        let what = format_args!("number network namespace {}", self.path.display());
        let request = self.message(&[NsidAttribute::Id(NOT_ASSIGNED)]);
        match socket.act(Kind::NewNsId, &request, 0, &what) {
            // Another process was faster.
            Err(error) if error.errno() != Some(Errno::EXIST) => return Err(error),
            _ => {}
        }
        let unassigned = || NetlinkError::Answer { what: what.to_string(), problem: "has no number" };
        self.assigned_id(socket)?.ok_or_else(unassigned)
    }

    /// Its number as seen from the namespace of `socket`, if it has one.
    pub fn assigned_id(&self, socket: &mut Socket) -> Result<Option<NetnsId>, NetlinkError> {
        let what = format_args!("ask for the number of network namespace {}", self.path.display());
        let request = self.message(&[]);
        let header_length = request.header.buffer_len();
        let answer = socket.get(Kind::GetNsId, &request, &what)?;
        let attributes = answer.get(header_length..).unwrap_or_default();
        let id = NlasIterator::new(attributes).flatten().find(|a| a.kind() == NETNSA_NSID);
        let id = id.and_then(|id| Some(i32::from_ne_bytes(id.value().try_into().ok()?)));
        Ok(id.filter(|id| *id != NOT_ASSIGNED).map(NetnsId))
    }

    fn message(&self, attributes: &[NsidAttribute]) -> NsidMessage {
        let mut message = NsidMessage::default();
        // A file descriptor is never negative.
        message.attributes.push(NsidAttribute::Fd(self.fd.as_raw_fd().unsigned_abs()));
        message.attributes.extend_from_slice(attributes);
        message
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Leads the thread back also when the work panics.
struct WayBack<'n>(Option<BorrowedFd<'n>>);

impl WayBack<'_> {
    /// When this fails, the way is tried again: who undoes what was done must not do it in the pod.
    fn take(mut self) -> Result<(), Errno> {
        if let Some(own) = self.0 {
            move_into_link_name_space(own, Some(LinkNameSpaceType::Network))?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            // The panic or the earlier failure is what gets reported.
            let _ = move_into_link_name_space(own, Some(LinkNameSpaceType::Network));
        }
    }
}

/// Returns whether the calling thread's namespace belongs to a user namespace of a pod (`hostUsers: false`): the kernel shows
/// what describes a network namespace as owned by root of the user namespace that owns it.
pub(crate) fn is_in_user_namespace() -> Result<bool, Errno> {
    Ok(stat("/proc/thread-self/net/dev")?.st_uid != 0)
}

/// The calling thread's own namespace.
pub(crate) fn own() -> Result<OwnedFd, Errno> {
    open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Returns whether a namespace has this number as seen from the namespace of `socket`. A number is given back only when
/// its namespace has ended, and may then be given to another one.
pub fn is_assigned(socket: &mut Socket, id: NetnsId) -> Result<bool, NetlinkError> {
    let mut request = NsidMessage::default();
    request.attributes.push(NsidAttribute::Id(id.0));
    let what = format_args!("ask for network namespace number {}", id.0);
    match socket.get(Kind::GetNsId, &request, &what) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The path without links of the file system, by which a record names a namespace (`/run/netns/x` for `/var/run/netns/x`,
/// which a container may not have): of the whole if something is there, else of its directory, for the last part of
/// `/proc/<pid>/ns/net` leads to no path.
pub fn canonical(path: &Path) -> PathBuf {
    let whole = path.canonicalize().ok().filter(|whole| whole.exists());
    let directory = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    whole.or_else(directory).unwrap_or_else(|| path.to_owned())
}

/// Returns whether the namespace with this inode is surely not at `path` any more: nothing is there, something that is
/// not a namespace, or another one. A path that cannot be examined proves nothing.
pub fn is_gone(path: &Path, inode: u64) -> bool {
    match stat(path) {
        Ok(found) => {
            let is_namespace = statfs(path).is_ok_and(|system| is_nsfs(&system));
            found.st_ino != inode || !is_namespace
        }
        Err(errno) => matches!(errno, Errno::NOENT | Errno::NOTDIR),
    }
}

fn is_nsfs(system: &StatFs) -> bool {
    u64::try_from(system.f_type).ok() == Some(NSFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pods_namespace_is_refused() {
        let open = |path: &str| Netns::open(Path::new(path));
        assert!(matches!(open("/run/no/such/netns"), Err(NetnsError::Missing(_))));
        assert!(matches!(open("/proc/self/status"), Err(NetnsError::NotNetns(_))));
        assert!(matches!(open("/dev/null"), Err(NetnsError::NotNetns(_))));
        assert!(matches!(open("/proc/self/ns/net"), Err(NetnsError::Own(_))));
    }

    #[test]
    fn a_path_through_links_and_the_one_without_are_the_same_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap().join("run");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, directory.path().join("var")).unwrap();
        std::fs::write(real.join("x"), "").unwrap();
        for (path, meant) in [("var/x", "x"), ("run/x", "x"), ("var/gone", "gone")] {
            assert_eq!(canonical(&directory.path().join(path)), real.join(meant), "{path}");
        }
        let own = format!("/proc/{}/ns/net", std::process::id());
        assert_eq!(canonical(Path::new("/proc/self/ns/net")), Path::new(&own));
    }

    #[test]
    fn a_namespace_is_known_by_path_and_inode() {
        let own = stat("/proc/self/ns/net").unwrap();
        assert!(!is_gone(Path::new("/proc/self/ns/net"), own.st_ino));
        assert!(is_gone(Path::new("/proc/self/ns/net"), own.st_ino + 1));
        assert!(is_gone(Path::new("/run/no/such/netns"), own.st_ino));
        let file = stat("/proc/self/status").unwrap();
        assert!(is_gone(Path::new("/proc/self/status"), file.st_ino), "another file with the same inode");
        let looping = tempfile::tempdir().unwrap();
        let path = looping.path().join("loop");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(!is_gone(&path, own.st_ino), "what cannot be examined proves nothing");
    }
}

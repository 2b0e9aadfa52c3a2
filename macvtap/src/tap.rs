//! Taps: the character device of a macvtap, and our own nodes for it.
//!
//! devtmpfs names a tap by its link's index, in one directory for all namespaces of the machine: two links of one
//! index in two namespaces (two nodes on one kernel, or a pod that chose the number) fight over one name. So the number
//! comes from the link's own namespace, as the kernel announces it there or as its sysfs shows it, and the node lies in a
//! directory of ours. A tap is never opened here: each open file is a queue that swallows its share of the flows.

use crate::file::{self, FileError};
use crate::link::IfName;
use crate::netns::NetnsError;
use crate::record::DeviceNumber;
use crate::table::Owner;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::{fs, io};
use tracing::warn;

/// Read and write for the owner, nothing for others.
const NODE_MODE: u32 = 0o600;

/// The first kernel with `fsopen(2)`.
const KERNEL_MIN: &str = "5.2";

/// Where the kernel lists every character device of the machine, whatever its namespace.
pub(crate) const CHARACTER_DEVICES: &str = "/sys/dev/char";

/// A view of sysfs as one network namespace has it. Not mounted anywhere: it lives as long as this value.
#[derive(Debug)]
pub struct Sysfs {
    root: OwnedFd,
}

/// A device node to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The device.
    pub number: DeviceNumber,
    /// Who may open it.
    pub owner: Owner,
}

/// A tap cannot be found or reached.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No view of sysfs.
    #[error("{step} sysfs of a network namespace")]
    Sysfs {
        /// What was being done.
        step: &'static str,
        /// What the kernel answered.
        #[source]
        errno: Errno,
    },
    /// The kernel is too old.
    #[error(
        "show the sysfs of a network namespace: this kernel cannot mount without a path; use Linux {KERNEL_MIN} or newer"
    )]
    Kernel,
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The number of a tap could not be read.
    #[error("read the device number of tap{ifindex} from sysfs of {name}")]
    Read {
        /// The link.
        name: IfName,
        /// Its index.
        ifindex: u32,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// What was read is not a number.
    #[error("sysfs says {text:?} for the device number of tap{ifindex}, which is not <major>:<minor>")]
    Number {
        /// The index of the link.
        ifindex: u32,
        /// What was read.
        text: String,
    },
}

impl Sysfs {
    /// The view of the node's network namespace, which is the calling thread's. Without the right to mount (the agent
    /// has no `CAP_SYS_ADMIN`), and on old kernels, the one that is mounted: runtimes mount it for this namespace.
    pub fn of_node() -> Result<Self, TapError> {
        match Self::open() {
            Err(TapError::Sysfs { errno: Errno::PERM, .. } | TapError::Kernel) => {
                let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root = open("/sys", flags, Mode::empty());
                Ok(Self { root: root.map_err(|errno| not_opened("open", errno))? })
            }
            opened => opened,
        }
    }

    /// The view of the calling thread's network namespace.
    pub fn open() -> Result<Self, TapError> {
        let failed = |step| move |errno| not_opened(step, errno);
        let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open"))?;
        fsconfig_create(&context).map_err(failed("create"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount"))?;
        Ok(Self { root })
    }

    /// The device number of the tap of this link. The kernel names the tap's directory by the link's index, so another
    /// link that took the name meanwhile is not found.
    pub fn tap(&self, name: &IfName, ifindex: u32) -> Result<DeviceNumber, TapError> {
        let path = format!("class/net/{name}/tap{ifindex}/dev");
        let unread = |source| TapError::Read { name: name.clone(), ifindex, source };
        let file = openat(&self.root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(|errno| unread(errno.into()))?;
        let text = io::read_to_string(fs::File::from(file)).map_err(unread)?;
        let no_number = || TapError::Number { ifindex, text: text.clone() };
        text.trim_end().parse().map_err(|_| no_number())
    }
}

fn not_opened(step: &'static str, errno: Errno) -> TapError {
    match errno {
        Errno::NOSYS => TapError::Kernel,
        errno => TapError::Sysfs { step, errno },
    }
}

/// Makes the node: root's until it is given its owner. Replaces what is at `path`, so that nobody finds it absent.
pub fn make_node(path: &Path, node: Node) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match file::within(directory, || make_new(path, node)) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
        outcome => return outcome,
    }
    let temporary = file::temporary_beside(path);
    // Of a maker that was killed.
    file::remove_one(&temporary)?;
    make_new(&temporary, node)?;
    let placed = file::rename(&temporary, path);
    if placed.is_err() {
        // The reason to report is the first one.
        let _ = fs::remove_file(&temporary);
    }
    placed
}

/// Makes a node where nothing is. On error nothing is there either.
fn make_new(path: &Path, node: Node) -> Result<(), FileError> {
    let device = makedev(node.number.major, node.number.minor);
    let made = mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(NODE_MODE), device);
    made.map_err(|errno| file::failed("create device node", path)(errno.into()))?;
    let owned = lchown(path, Some(node.owner.uid), Some(node.owner.gid));
    owned.map_err(|error| {
        // The reason to report is the first one.
        let _ = fs::remove_file(path);
        file::failed("give to its owner", path)(error)
    })
}

/// Gives an existing node to `owner`, and to nobody else.
pub(crate) fn give_to(path: &Path, owner: Owner) -> Result<(), FileError> {
    lchown(path, Some(owner.uid), Some(owner.gid)).map_err(file::failed("give to its owner", path))?;
    let only_owner = fs::Permissions::from_mode(NODE_MODE);
    fs::set_permissions(path, only_owner).map_err(file::failed("restrict to its owner", path))
}

/// Removes the node; succeeds when there is none.
pub fn remove_node(path: &Path) -> Result<(), FileError> {
    match file::remove(path) {
        // Not by this program, and not a node. The pod must go.
        Err(error) if error.is_not_a_file() => {
            warn!(path = %path.display(), "a directory with content is in place of a device node; remove it");
            Ok(())
        }
        removed => removed,
    }
}

/// What is at `path`, if it is a character device.
pub fn node_at(path: &Path) -> Option<Node> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let is_device = FileType::from_raw_mode(metadata.mode()) == FileType::CharacterDevice;
    let number =
        DeviceNumber { major: rustix::fs::major(metadata.rdev()), minor: rustix::fs::minor(metadata.rdev()) };
    let owner = Owner { uid: metadata.uid(), gid: metadata.gid() };
    is_device.then_some(Node { number, owner })
}

/// Whether this node is at `path`, for its owner and nobody else.
pub(crate) fn is_in_place(path: &Path, node: Node) -> bool {
    let mode = |path| fs::symlink_metadata(path).map(|metadata| metadata.mode() & 0o7777);
    node_at(path) == Some(node) && mode(path).is_ok_and(|mode| mode == NODE_MODE)
}

/// Index of the macvtap that has this tap now, in whatever namespace it is; none when the number is free.
pub fn link_with(number: DeviceNumber) -> Option<u32> {
    let path = Path::new(CHARACTER_DEVICES).join(number.to_string());
    tap_index(&fs::read_link(path).ok()?)
}

/// Every tap of the machine with the index of its link, in whatever namespace.
pub fn all() -> io::Result<Vec<(DeviceNumber, u32)>> {
    let mut taps = Vec::new();
    for entry in fs::read_dir(CHARACTER_DEVICES)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let target: Option<PathBuf> = fs::read_link(entry.path()).ok();
        taps.extend(number.zip(target.and_then(|target| tap_index(&target))));
    }
    Ok(taps)
}

/// `../../devices/virtual/net/<link>/tap<index>` gives the index.
fn tap_index(target: &Path) -> Option<u32> {
    let is_net = target.components().any(|part| part.as_os_str() == "net");
    let index = target.file_name()?.to_str()?.strip_prefix("tap")?.parse().ok()?;
    is_net.then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_too_old_is_told_with_the_version_it_needs() {
        assert!(not_opened("open", Errno::NOSYS).to_string().contains("use Linux 5.2 or newer"));
        assert!(matches!(not_opened("open", Errno::NOMEM), TapError::Sysfs { errno: Errno::NOMEM, .. }));
    }

    #[test]
    fn a_taps_directory_tells_the_index_of_its_link() {
        let index = |target: &str| tap_index(Path::new(target));
        assert_eq!(index("../../devices/virtual/net/net1/tap16777216"), Some(16_777_216));
        assert_eq!(index("../../devices/pci0000:00/0000:01:00.0/virtio1/net/m/tap7"), Some(7));
        assert_eq!(index("../../devices/virtual/tty/tty7"), None);
        assert_eq!(index("../../devices/virtual/misc/tap7"), None);
    }
}

//! Whether the sandbox of an attachment is gone. Absence of evidence is not evidence: a path that cannot be seen from
//! here says nothing, because runtimes keep namespaces where the agent has no mount.

use macvtap::kernel::Rtnl;
use macvtap::netns::{Netns, NetnsId};
use macvtap::record::{Attachment, Holder};
use std::cell::{OnceCell, RefCell};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directories in which runtimes keep the network namespaces of pods. On a node both are one, in a container they are two.
pub const NAMESPACES: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Processes have other numbers in a container than on the node: what is missing or different there means nothing.
const PROCESSES: &str = "/proc";

/// What is known of a sandbox.
#[derive(Debug)]
pub enum Fate {
    /// Its network namespace was found.
    Alive,
    /// Nothing proves that it is gone. It counts as alive.
    Unknown,
    /// Its network namespace has ended.
    Gone(SandboxGone),
}

/// Proof that a network namespace has ended; one of the two witnesses that [`super::orphan`] asks for.
#[derive(Clone, Copy, Debug)]
pub struct SandboxGone(());

/// The network namespaces of the node's pods, as far as the agent sees them at one moment.
#[derive(Debug)]
pub struct Sandboxes {
    kernel: RefCell<Option<Rtnl>>,
    directories: Vec<PathBuf>,
    visible: OnceCell<Vec<Visible>>,
}

#[derive(Debug)]
struct Visible {
    inode: u64,
    number: Option<NetnsId>,
}

/// What is at the path of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathState {
    Same,
    Absent,
    Unclear,
}

impl Sandboxes {
    /// Those of this node. Without `kernel` only paths are looked at.
    pub fn new(kernel: Option<Rtnl>) -> Self {
        let directories = NAMESPACES.map(PathBuf::from).into();
        Self { kernel: RefCell::new(kernel), directories, visible: OnceCell::new() }
    }

    /// Runs `work` with the kernel, if that could be reached.
    pub fn with_kernel<T>(&self, work: impl FnOnce(&mut Rtnl) -> T) -> Option<T> {
        self.kernel.borrow_mut().as_mut().map(work)
    }

    /// Returns what is known of the sandbox of a record. A pod that has only the tap has none that could be known.
    pub fn fate(&self, record: &Attachment) -> Fate {
        let Holder::Pod { netns, netns_inode: inode, .. } = &record.holder else {
            return Fate::Unknown;
        };
        let path = Path::new(netns);
        let number = record.netns_id.map(NetnsId);
        if number.is_some_and(|number| self.is_unassigned(number)) {
            return Fate::Gone(SandboxGone(()));
        }
        if place(path, *inode) == PathState::Same {
            return Fate::Alive;
        }
        let visible = self.visible.get_or_init(|| self.look());
        if visible.iter().any(|netns| netns.inode == *inode) {
            return Fate::Alive;
        }
        let gone = match number {
            // Another namespace has its number by now.
            Some(_) => visible.iter().any(|netns| netns.number == number),
            None => place(path, *inode) == PathState::Absent,
        };
        if gone { Fate::Gone(SandboxGone(())) } else { Fate::Unknown }
    }

    fn is_unassigned(&self, number: NetnsId) -> bool {
        self.with_kernel(|kernel| kernel.is_assigned(number)).is_some_and(|known| matches!(known, Ok(false)))
    }

    fn look(&self) -> Vec<Visible> {
        let entries = self.directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok());
        let paths = entries.flatten().flatten().map(|entry| entry.path());
        let netns = paths.filter_map(|path| Netns::open(&path).ok());
        let visible = netns.map(|netns| {
            let number = self.with_kernel(|kernel| kernel.assigned_id(&netns).ok().flatten()).flatten();
            Visible { inode: netns.inode(), number }
        });
        visible.collect()
    }
}

/// What a path shows. A file that is not a namespace is the place where one is or was mounted; the mount may not be visible
/// from here.
fn place(path: &Path, inode: u64) -> PathState {
    match std::fs::metadata(path) {
        Ok(found) if found.ino() == inode => PathState::Same,
        Ok(_) if !path.starts_with(PROCESSES) && Netns::open(path).is_ok() => PathState::Absent,
        Err(error) if error.kind() == io::ErrorKind::NotFound && shows_namespaces(path) => PathState::Absent,
        Ok(_) | Err(_) => PathState::Unclear,
    }
}

/// Whether a missing entry of the path's directory is one that the runtime removed.
fn shows_namespaces(path: &Path) -> bool {
    path.parent()
        .is_some_and(|parent| NAMESPACES.iter().any(|known| parent == Path::new(known)) && parent.is_dir())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::attachments::collector::tests::recorded;

    pub(crate) fn gone() -> Fate {
        Fate::Gone(SandboxGone(()))
    }

    fn at(path: &str, inode: u64, number: Option<i32>) -> Attachment {
        let mut record = recorded("aMvp0");
        record.netns_id = number;
        if let Holder::Pod { netns, netns_inode, .. } = &mut record.holder {
            (*netns, *netns_inode) = (path.to_owned(), inode);
        }
        record
    }

    /// What is known without the kernel and without any namespace to be seen.
    fn fate(record: &Attachment) -> Fate {
        let directories = Vec::new();
        Sandboxes { kernel: RefCell::new(None), directories, visible: OnceCell::new() }.fate(record)
    }

    #[test]
    fn a_path_that_cannot_be_seen_proves_nothing() {
        for path in [
            "/run/containerd/io.containerd.grpc.v1.cri/netns/cni-1",
            "/nonexistent/netns/cni-1",
            "/proc/1/ns/net",
            "/proc/4194305/ns/net",
            "/dev/null",
            "",
        ] {
            assert!(matches!(fate(&at(path, 1, None)), Fate::Unknown), "{path}");
            assert!(matches!(fate(&at(path, 1, Some(7))), Fate::Unknown), "{path}");
        }
    }

    #[test]
    fn a_namespace_at_its_path_is_alive() {
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert!(matches!(fate(&at("/proc/self/ns/net", own, None)), Fate::Alive));
    }

    #[test]
    fn a_tap_without_a_network_has_no_sandbox_that_could_be_gone() {
        let record = Attachment { holder: Holder::Host, ..recorded("aMvp0") };
        assert!(matches!(fate(&record), Fate::Unknown));
    }
}

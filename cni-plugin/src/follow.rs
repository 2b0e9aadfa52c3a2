//! The address of a machine that migrates follows its guest, as a switch learns where a station is.
//!
//! A migration has two links with one address for a while, one on each node. The kernel delivers frames of a node's own
//! pods to the link that has their destination, so on each node they would reach the link of that node, whichever of
//! the two the guest is behind. With `migration: Follow` a link has the guest's address only while its guest is there:
//! from the first frame that the guest sends, until a station elsewhere on the wire announces the same address (RARP,
//! as every hypervisor does when it has moved a machine).
//!
//! Nobody but a process with sockets of the pod's namespace can see and do this, so ADD leaves one: this program again,
//! called with the word `follow` and a device ID. It sees no frame of the link's traffic while the guest is there. Its
//! file below `/run/macvtap/follow` contains what it follows, and it holds the lock of that file: a call that finds the
//! lock free starts the follower again.

mod file;
mod judge;
mod process;

use crate::address;
use crate::config::{Migration, Network};
use crate::packet::PacketSocket;
use crate::protocol::error::chain;
use macvtap::device_id::DeviceId;
use macvtap::kernel::{Home, Kernel, Place, Rtnl};
use macvtap::link::{By, Link};
use macvtap::mac::MacAddr;
use macvtap::mode::Mode;
use macvtap::netns::{self, Netns};
use macvtap::paths::Paths;
use macvtap::record::Holder;
use macvtap::table::LowerLink;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use tracing::{info, warn};

/// The argument by which this program becomes a follower.
const WORD: &str = "follow";

/// What the follower writes when its sockets are open.
const READY: &str = "ready\n";

/// Becomes a follower where the arguments say so: runtimes call a plugin without any. Gives its exit code at its end.
pub fn follow_if_asked(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let word = arguments.next()?;
    let device = arguments.next().and_then(|device| device.into_string().ok());
    let device = device.filter(|_| word == WORD && arguments.next().is_none())?;
    Some(process::run(&device).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

/// What one follower follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Following {
    /// The guest's address.
    pub mac: MacAddr,
    /// The link's address while the guest is elsewhere.
    pub away: MacAddr,
    /// Index of the link, in the pod's namespace.
    pub ifindex: u32,
    /// Index of the lower link, on the node.
    pub lower: u32,
    /// Where the pod's namespace is.
    pub netns: PathBuf,
    /// Which one that is.
    pub netns_inode: u64,
}

impl Following {
    /// What should be followed. Only a mode that delivers frames between siblings has a wrong link to deliver them to; and
    /// without an address that somebody gave the guest nobody but the link can say which it is.
    pub(crate) fn wanted(
        network: &Network,
        holder: &Holder,
        lower: &LowerLink,
        ifindex: u32,
    ) -> Option<Self> {
        let Holder::Pod { container_id, ifname, netns, netns_inode, .. } = holder else { return None };
        if network.migration != Migration::Follow || lower.mode != Mode::Bridge {
            return None;
        }
        Some(Self {
            mac: network.mac?,
            away: address::away(container_id, ifname)?,
            ifindex,
            lower: lower.ifindex,
            netns: netns.into(),
            netns_inode: *netns_inode,
        })
    }
}

/// The link as ADD reports it: the program that starts the guest gives it this address, whatever the link has by now.
pub(crate) fn reported(link: Link, following: Option<&Following>) -> Link {
    Link { mac: following.map(|following| following.mac.octets()).or(link.mac), ..link }
}

/// A follower cannot work.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// A file could not be written or read.
    #[error("{step} {}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another follower holds the lock.
    #[error("{} is locked by another follower", .0.display())]
    Taken(PathBuf),
    /// It ended before it was ready.
    #[error("start the follower of device {device}: {reason}; the pod is retried by the runtime")]
    NotReady {
        /// The device.
        device: DeviceId,
        /// What the follower reported.
        reason: String,
    },
    /// The namespace, the link or its sockets.
    #[error("{0}")]
    Kernel(String),
}

fn directory(paths: &Paths) -> PathBuf {
    paths.run().join("follow")
}

/// Leaves a follower for a link that is up, and waits until it listens. Another file than a former one: its follower,
/// which is about to see that its link is gone, keeps that.
pub fn start(paths: &Paths, device: &DeviceId, following: &Following) -> Result<(), FollowError> {
    spawn(device, file::create(paths, device, following)?)
}

/// Starts the program with its locked file as standard input: the lock is held without a gap from this process to that.
fn spawn(device: &DeviceId, locked: File) -> Result<(), FollowError> {
    let program = PathBuf::from("/proc/self/exe");
    let failed = |source| FollowError::File { step: "run", path: program.clone(), source };
    let mut child = Command::new(&program)
        .args([WORD, &device.to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(locked))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut reported = String::new();
    // Its first line, or its end.
    let stdout = child.stdout.take().map(BufReader::new);
    stdout.map_or(Ok(0), |mut stdout| stdout.read_line(&mut reported)).map_err(failed)?;
    let reason = match reported.as_str() {
        READY => return Ok(()),
        "" => "it was killed",
        reason => reason.trim_end(),
    };
    Err(FollowError::NotReady { device: device.clone(), reason: reason.to_owned() })
}

/// Starts followers that were killed, and removes what is left of those whose link is gone. A runtime that ends takes its
/// children along where its service is set up so; the next call corrects that.
pub fn mend(paths: &Paths) {
    // On most nodes nobody follows anything.
    let Ok(entries) = fs::read_dir(directory(paths)) else { return };
    for entry in entries.flatten() {
        let Some(device) = entry.file_name().to_str().and_then(|name| name.parse::<DeviceId>().ok()) else {
            continue;
        };
        if let Err(error) = mend_one(paths, &device) {
            let error = chain(&error);
            warn!(%device, %error, "the address of a machine is not followed; the next call tries again");
        }
    }
}

fn mend_one(paths: &Paths, device: &DeviceId) -> Result<(), FollowError> {
    let Some((following, locked)) = file::orphaned(paths, device)? else { return Ok(()) };
    let Some(following) = following else {
        // Its writer was killed, and undoes the attachment by its DEL.
        return file::remove(paths, device, &locked);
    };
    if !is_there(&following)? {
        return file::remove(paths, device, &locked);
    }
    info!(%device, "follower had ended and is started again");
    spawn(device, locked)
}

/// Whether the link still is where it was. An error is not an answer: the machine may run.
fn is_there(following: &Following) -> Result<bool, FollowError> {
    if netns::is_gone(&following.netns, following.netns_inode) {
        return Ok(false);
    }
    let failed = |error: &dyn std::error::Error| FollowError::Kernel(chain(error));
    let netns = Netns::open(&following.netns).map_err(|error| failed(&error))?;
    if netns.inode() != following.netns_inode {
        return Ok(false);
    }
    let mut kernel = Rtnl::with_pod(netns).map_err(|error| failed(&error))?;
    let found = kernel.find(Place::Home(Home::Target), &By::Index(following.ifindex));
    Ok(found.map_err(|error| failed(&error))?.is_some_and(|link| link.is_macvtap()))
}

/// A frame that says which station sent it.
fn source(frame: &[u8]) -> Option<&[u8]> {
    frame.get(6..12)
}

/// Opens a socket on a link for frames of this type.
fn open(ifindex: u32, ethertype: u16) -> Result<PacketSocket, FollowError> {
    PacketSocket::open(ifindex, Some(ethertype))
        .map_err(|error| FollowError::Kernel(format!("open a packet socket on link {ifindex}: {error}")))
}

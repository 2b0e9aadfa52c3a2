//! The follower: sockets in, changes of one link out. It ends with the link.

use super::judge::{Act, Judge, Seen};
use super::{FollowError, Following, READY, file, open, source};
use crate::log;
use crate::packet::PacketSocket;
use crate::protocol::error::chain;
use crate::settings::Settings;
use macvtap::device_id::DeviceId;
use macvtap::link::{self, By, Change, Link};
use macvtap::netlink::{Kind, NetlinkError, Socket};
use macvtap::netns::{self, Netns};
use macvtap::paths::Paths;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::Write as _;
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// `ETH_P_ALL` and `ETH_P_RARP` of `linux/if_ether.h`, and a type that is nobody's (IEEE 802, for experiments).
const EVERY_TYPE: u16 = 3;
const RARP: u16 = 0x8035;
const NOBODYS: u16 = 0x88b5;

/// How often to look whether the pod's namespace is where it was. It cannot end while a socket of it is open, so a pod
/// that ended without a DEL is known only by this.
const LOOK: Duration = Duration::from_secs(2);

/// So many frames are read before time and link are checked again: a flood of frames must not hide either.
const BATCH: usize = 64;

struct Follower {
    following: Following,
    netns: Netns,
    rtnl: Socket,
    /// Hears nothing, and fails when the link goes.
    sentinel: PacketSocket,
    ears: Ears,
    judge: Judge,
}

/// The one socket that receives frames.
struct Ears {
    socket: PacketSocket,
    /// Whether it receives announcements that arrive at the lower link, or every frame of the link.
    on_wire: bool,
}

/// Follows until the link is gone. Writes a line to standard output: that it listens, or why it does not.
pub(super) fn run(device: &str) -> Result<(), FollowError> {
    // The session of the plugin's caller may be ended as a whole.
    let _ = rustix::process::setsid();
    let paths = Paths::default();
    log::start_follower(device, Settings::load(&paths).ok().as_ref());
    let followed = follow(&paths, device);
    if let Err(error) = &followed {
        // Read only by a caller that still waits for this process to be ready.
        let error = chain(error);
        let _ = writeln!(std::io::stdout(), "{error}");
        error!(%error, "follower ended; the next call of the plugin on this node starts it again");
    }
    followed
}

fn follow(paths: &Paths, device: &str) -> Result<(), FollowError> {
    let device: DeviceId =
        device.parse().map_err(|_| FollowError::Kernel(format!("{device} is not a device ID")))?;
    let path = file::path(paths, &device);
    let (following, locked) = file::inherited(&path)?;
    let mut follower = Follower::open(following)?;
    let mut stdout = std::io::stdout().lock();
    let reported = stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush());
    reported.map_err(|source| FollowError::File { step: "report that it follows", path, source })?;
    drop(stdout);
    while follower.step()? {}
    file::remove(paths, &device, &locked)
}

impl Follower {
    fn open(following: Following) -> Result<Self, FollowError> {
        let kernel = |error: &dyn std::error::Error| FollowError::Kernel(chain(error));
        let netns = Netns::open(&following.netns).map_err(|error| kernel(&error))?;
        if netns.inode() != following.netns_inode {
            return Err(FollowError::Kernel(format!(
                "{} is another namespace by now",
                netns.path().display()
            )));
        }
        let (rtnl, sentinel) = netns
            .enter(|| (Socket::open(), open(following.ifindex, NOBODYS)))
            .map_err(|error| kernel(&error))?;
        let mut rtnl = rtnl.map_err(|error| kernel(&error))?;
        let link = find(&mut rtnl, following.ifindex).map_err(|error| kernel(&error))?;
        let link = link.ok_or_else(|| FollowError::Kernel("the link is gone".to_owned()))?;
        let judge = Judge::new(link.device_mac() == Some(following.mac));
        let ears = Ears::open(&following, &netns, judge.is_here())?;
        Ok(Self { following, netns, rtnl, sentinel: sentinel?, ears, judge })
    }

    /// Waits for something and judges it. False when the link is gone.
    fn step(&mut self) -> Result<bool, FollowError> {
        let wait = self.judge.deadline().map_or(LOOK, |at| at.saturating_duration_since(Instant::now()));
        let timeout = Timespec::try_from(wait.min(LOOK)).ok();
        let mut sockets =
            [PollFd::new(&self.ears.socket, PollFlags::IN), PollFd::new(&self.sentinel, PollFlags::IN)];
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(FollowError::Kernel(format!("wait for frames: {error}"))),
        }
        let troubled = sockets.iter().any(|socket| !socket.revents().difference(PollFlags::IN).is_empty());
        if troubled {
            // Down or gone; reading takes the error away, and a link that is down comes back. The answer comes when the
            // kernel is done with the link.
            let _ = self.sentinel.receive(&mut []);
            let _ = find(&mut self.rtnl, self.following.ifindex);
        }
        if netns::is_gone(&self.following.netns, self.following.netns_inode) || self.is_gone()? {
            return Ok(false);
        }
        let seen = self.ears.hear(&self.following);
        let act = self.judge.judge(seen, Instant::now());
        // Before anything is changed: what comes next may come at once.
        self.listen()?;
        act.map_or(Ok(true), |act| self.act(act).map(|()| true))
    }

    /// Another link may have its index by now, of a later attachment in the same namespace.
    fn is_gone(&self) -> Result<bool, FollowError> {
        let is_bound = self.sentinel.is_bound();
        is_bound
            .map(|bound| !bound)
            .map_err(|error| FollowError::Kernel(format!("ask for the link: {error}")))
    }

    /// Listens where the next thing of interest is to be heard.
    fn listen(&mut self) -> Result<(), FollowError> {
        let on_wire = self.judge.is_here();
        if self.ears.on_wire != on_wire {
            self.ears = Ears::open(&self.following, &self.netns, on_wire)?;
        }
        Ok(())
    }

    fn act(&mut self, act: Act) -> Result<(), FollowError> {
        let Following { mac, away, ifindex, .. } = self.following;
        let wanted = match act {
            Act::Take => mac,
            Act::Leave => away,
        };
        let message = link::change(ifindex, Change::mac(wanted));
        let Err(error) = self.rtnl.act(Kind::SetLink, &message, 0, &format_args!("set MAC address {wanted}"))
        else {
            self.judge.succeeded();
            return Ok(());
        };
        // The lower link or another link on it has the address, or this one is going.
        let pause = self.judge.failed(act, Instant::now()).as_secs();
        let error = chain(&error);
        warn!(
            error,
            "link cannot follow its guest; pods of this node reach another link with address {mac}; next try in {pause} s"
        );
        self.listen()
    }
}

fn find(rtnl: &mut Socket, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
    let what = format_args!("look for link {ifindex}");
    match rtnl.get(Kind::GetLink, &link::get(&By::Index(ifindex), None), &what) {
        Ok(payload) => Link::parse(payload)
            .map(|link| Some(link).filter(Link::is_macvtap))
            .map_err(|problem| NetlinkError::Answer { what: what.to_string(), problem }),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Ears {
    /// While the guest is here, only announcements that arrive at the lower link are heard: the link itself never gets
    /// one from its own address, which the kernel takes for its own frame. While it is not, every frame of the link is,
    /// for the first that the guest sends.
    fn open(following: &Following, netns: &Netns, on_wire: bool) -> Result<Self, FollowError> {
        let opened = if on_wire {
            Ok(open(following.lower, RARP))
        } else {
            netns.enter(|| open(following.ifindex, EVERY_TYPE))
        };
        let socket = opened.map_err(|error| FollowError::Kernel(chain(&error)))??;
        Ok(Self { socket, on_wire })
    }

    /// Reads what has come.
    fn hear(&self, following: &Following) -> Seen {
        let mut frame = [0; 14];
        for _ in 0..BATCH {
            let Ok((length, is_outgoing)) = self.socket.receive(&mut frame) else { break };
            let frame = frame.get(..length).unwrap_or_default();
            if source(frame) != Some(&following.mac.octets()[..]) {
                continue;
            }
            let is_announcement = frame.get(12..14) == Some(&RARP.to_be_bytes()[..]);
            match is_outgoing {
                true => return Seen::Guest,
                false if is_announcement => return Seen::Elsewhere,
                false => {}
            }
        }
        Seen::Nothing
    }
}

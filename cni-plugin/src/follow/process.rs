//! The follower: sockets in, changes of one link out. It ends with the link.

use super::judge::{Act, Judge, Seen};
use super::{FollowError, Following, READY, open, path, source};
use crate::packet::PacketSocket;
use macvtap::device_id::DeviceId;
use macvtap::link::{self, By, Change, Link};
use macvtap::netlink::{Kind, NetlinkError, Socket};
use macvtap::netns::{self, Netns};
use macvtap::paths::Paths;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// `ETH_P_ALL` and `ETH_P_RARP` of `linux/if_ether.h`, and a type that is nobody's (IEEE 802, for experiments).
const EVERY_TYPE: u16 = 3;
const RARP: u16 = 0x8035;
const NOBODYS: u16 = 0x88b5;

/// How often to look whether the pod's namespace is where it was. It cannot end while a socket of it is open, so a pod
/// that ended without a DEL is known only by this.
const LOOK: Duration = Duration::from_secs(2);

/// How long a former follower may take to notice that its link is gone.
const PATIENCE: Duration = Duration::from_secs(2);

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
struct Ears(PacketSocket);

/// Follows until the link is gone. Writes a line to standard output when it listens.
pub(super) fn run(device: &str) -> Result<(), FollowError> {
    // The session of whoever called the plugin may be ended as a whole.
    let _ = rustix::process::setsid();
    let device: DeviceId =
        device.parse().map_err(|_| FollowError::Kernel(format!("{device} is no device ID")))?;
    let paths = Paths::default();
    let path = path(&paths, &device);
    let (following, _lock) = locked(&path)?;
    let mut follower = Follower::open(following)?;
    tell_ready(&path)?;
    while follower.step()? {}
    forget(&path, &follower.following);
    Ok(())
}

/// The file's content, and the file, locked. A former follower of the device may still be about to end.
fn locked(path: &Path) -> Result<(Following, File), FollowError> {
    let failed = |step| move |source| FollowError::File { step, path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed("open"))?;
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != Errno::WOULDBLOCK || Instant::now() >= deadline {
            return Err(FollowError::Taken(path.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(failed("read"))?;
    let following = serde_json::from_slice(&content).map_err(|error| failed("read")(error.into()))?;
    Ok((following, file))
}

fn tell_ready(path: &Path) -> Result<(), FollowError> {
    let mut stdout = std::io::stdout().lock();
    let told = stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush());
    told.map_err(|source| FollowError::File { step: "report that it follows", path: path.to_owned(), source })
}

/// Removes the file, unless it is another link's by now.
fn forget(path: &Path, following: &Following) {
    let content = fs::read(path).unwrap_or_default();
    if serde_json::from_slice::<Following>(&content).is_ok_and(|now| now == *following) {
        let _ = fs::remove_file(path);
    }
}

impl Follower {
    fn open(following: Following) -> Result<Self, FollowError> {
        let kernel = |error: &dyn std::error::Error| FollowError::Kernel(error.to_string());
        let netns = Netns::open(&following.netns).map_err(|error| kernel(&error))?;
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
            [PollFd::new(&self.ears.0, PollFlags::IN), PollFd::new(&self.sentinel, PollFlags::IN)];
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(FollowError::Kernel(format!("wait for frames: {error}"))),
        }
        let troubled = sockets.iter().any(|socket| !socket.revents().difference(PollFlags::IN).is_empty());
        if troubled {
            // Down or gone; reading takes the error away, and a link that is down comes back.
            let _ = self.sentinel.receive(&mut []);
        }
        let here = !netns::is_gone(&self.following.netns, self.following.netns_inode);
        if !here || troubled && self.is_gone() {
            return Ok(false);
        }
        let seen = self.ears.hear(&self.following);
        match self.judge.judge(seen, Instant::now()) {
            Some(act) => self.act(act).map(|()| true),
            None => Ok(true),
        }
    }

    fn is_gone(&mut self) -> bool {
        !matches!(find(&mut self.rtnl, self.following.ifindex), Ok(Some(_)))
    }

    /// Listens for what may come next before anything is changed: it may come at once.
    fn act(&mut self, act: Act) -> Result<(), FollowError> {
        self.ears = Ears::open(&self.following, &self.netns, act == Act::Take)?;
        let mac = match act {
            Act::Take => self.following.mac,
            Act::Leave => self.following.away,
        };
        let message = link::change(self.following.ifindex, Change::Mac(mac));
        if self.rtnl.act(Kind::SetLink, &message, 0, &format_args!("follow the guest")).is_err() {
            // Another link of this node has the address, or this one is going: what is seen next decides.
            self.judge = Judge::new(act == Act::Leave);
            self.ears = Ears::open(&self.following, &self.netns, act == Act::Leave)?;
        }
        Ok(())
    }
}

fn find(rtnl: &mut Socket, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
    let what = format_args!("look for link {ifindex}");
    match rtnl.get(Kind::GetLink, &link::get(&By::Index(ifindex), None), &what) {
        Ok(payload) => Ok(Link::parse(payload).ok()),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Ears {
    /// While the guest is here, only announcements that arrive at the lower link are heard: the link itself never gets
    /// one from its own address, which the kernel takes for its own frame. While it is not, every frame of the link is,
    /// for the first that the guest sends.
    fn open(following: &Following, netns: &Netns, guest_is_here: bool) -> Result<Self, FollowError> {
        if guest_is_here {
            return open(following.lower, RARP).map(Self);
        }
        let socket = netns.enter(|| open(following.ifindex, EVERY_TYPE));
        socket.map_err(|error| FollowError::Kernel(error.to_string()))?.map(Self)
    }

    /// Reads what has come.
    fn hear(&self, following: &Following) -> Seen {
        let mut frame = [0; 14];
        while let Ok((length, is_outgoing)) = self.0.receive(&mut frame) {
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

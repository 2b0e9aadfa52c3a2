//! A tap character device, opened as a virtual machine monitor does.

use crate::packet::Mac;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Updater, ioctl};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// In front of every frame: `struct virtio_net_hdr`. A freshly opened macvtap has `IFF_VNET_HDR` set.
const VNET_HEADER: usize = 10;

/// `SIOCGIFHWADDR` of `linux/sockios.h`; a macvtap answers it on its own descriptor.
const GET_ADDRESS: u32 = 0x8927;

/// `struct ifreq` of `linux/if.h`, for a request about an address.
#[repr(C)]
struct AddressRequest {
    name: [u8; 16],
    family: u16,
    address: Mac,
    rest: [u8; 16],
}

/// An open tap.
pub(crate) struct Tap {
    fd: OwnedFd,
}

/// Finds the device: a path, `auto` for the only `/dev/tap*`, or an interface of this namespace.
fn place(device: &str) -> Result<PathBuf> {
    if device.starts_with('/') {
        return Ok(device.into());
    }
    if device == "auto" {
        let entries = std::fs::read_dir("/dev").context("read /dev")?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let taps: Vec<PathBuf> =
            paths.filter(|path| path.to_string_lossy().starts_with("/dev/tap")).collect();
        return match taps.as_slice() {
            [path] => Ok(path.clone()),
            _ => bail!("/dev has {} taps; name one", taps.len()),
        };
    }
    let file = format!("/sys/class/net/{device}/ifindex");
    let index = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    Ok(format!("/dev/tap{}", index.trim()).into())
}

/// Reads `02:00:00:00:00:01`.
pub(crate) fn parse_mac(text: &str) -> Result<Mac> {
    let octets: Result<Vec<u8>, _> = text.split(':').map(|group| u8::from_str_radix(group, 16)).collect();
    octets
        .ok()
        .and_then(|octets| octets.try_into().ok())
        .with_context(|| format!("{text:?} is not a MAC address"))
}

impl Tap {
    pub(crate) fn open(device: &str) -> Result<Self> {
        let path = place(device)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self { fd })
    }

    /// The address of the tap's link, wherever that link is.
    pub(crate) fn mac(&self) -> Result<Mac> {
        let mut request = AddressRequest { name: [0; 16], family: 0, address: [0; 6], rest: [0; 16] };
        #[expect(unsafe_code, reason = "no safe wrapper knows this request")]
        // SAFETY: the kernel writes at most `sizeof(struct ifreq)` = 40 bytes, the size of AddressRequest, all of which
        // may hold any value; it keeps no pointer.
        let answer = unsafe { ioctl(&self.fd, Updater::<GET_ADDRESS, AddressRequest>::new(&mut request)) };
        answer.context("ask the tap for its MAC address")?;
        Ok(request.address)
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let mut buffer = vec![0; VNET_HEADER];
        buffer.extend(frame);
        rustix::io::write(&self.fd, &buffer).context("write to the tap")?;
        Ok(())
    }

    /// The next frame, or none when the deadline has come.
    pub(crate) fn receive(&self, deadline: Option<Instant>) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 65536 + VNET_HEADER];
        loop {
            // Before the read: a link that never falls silent must not keep us.
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(bytes) => return Ok(Some(buffer.get(VNET_HEADER..bytes).unwrap_or_default().to_vec())),
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error).context("read from the tap"),
            }
            let timeout = left.map(Timespec::try_from).transpose().context("wait for the tap")?;
            poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], timeout.as_ref())
                .context("wait for the tap")?;
        }
    }
}

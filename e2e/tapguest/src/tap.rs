//! A tap character device, opened as a virtual machine monitor does.

use crate::packet::Mac;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// In front of every frame: `struct virtio_net_hdr`. A freshly opened macvtap has `IFF_VNET_HDR` set.
const VNET_HEADER: usize = 10;

/// An open tap.
pub(crate) struct Tap {
    fd: OwnedFd,
}

/// Which device, and with which address.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) mac: Option<Mac>,
}

/// Finds the device: a path, `auto` for the only `/dev/tap*`, or an interface of this namespace.
pub(crate) fn place(device: &str) -> Result<Place> {
    if device.starts_with('/') {
        return Ok(Place {
            path: device.into(),
            mac: None,
        });
    }
    if device == "auto" {
        let entries = std::fs::read_dir("/dev").context("read /dev")?;
        let taps: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.to_string_lossy().starts_with("/dev/tap"))
            .collect();
        return match taps.as_slice() {
            [path] => Ok(Place {
                path: path.clone(),
                mac: None,
            }),
            _ => bail!("/dev has {} taps; name one", taps.len()),
        };
    }
    let read = |file: &str| {
        let path = format!("/sys/class/net/{device}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
    };
    let index = read("ifindex")?;
    let mac = parse_mac(read("address")?.trim())?;
    Ok(Place {
        path: format!("/dev/tap{}", index.trim()).into(),
        mac: Some(mac),
    })
}

/// Reads `02:00:00:00:00:01`.
pub(crate) fn parse_mac(text: &str) -> Result<Mac> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|group| u8::from_str_radix(group, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{text:?} is no MAC address"))?;
    octets
        .try_into()
        .ok()
        .with_context(|| format!("{text:?} is no MAC address"))
}

impl Tap {
    pub(crate) fn open(place: &Place) -> Result<Self> {
        let fd = rustix::fs::open(
            &place.path,
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("open {}", place.path.display()))?;
        Ok(Self { fd })
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
            let timeout = left
                .map(Timespec::try_from)
                .transpose()
                .context("wait for the tap")?;
            poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], timeout.as_ref())
                .context("wait for the tap")?;
        }
    }
}

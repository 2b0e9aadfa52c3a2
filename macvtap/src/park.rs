//! Placeholders: links that keep a tap minor busy.
//!
//! A container whose link vanished may still open the old tap number, and the kernel gives the lowest free minor to the
//! next link. As long as a record names such a minor, a placeholder sits on it: a macvtap, down, on a cable of our own
//! in the namespace of the node, with index [`PLACEHOLDER_IFINDEX_FIRST`] plus the minor.

use crate::kernel::{Home, Kernel, NewLink, Place};
use crate::link::{By, IfName, Link, Macvtap, Veth};
use crate::lock::{self, LockError};
use crate::mode::Mode;
use crate::netlink::NetlinkError;
use crate::paths::Paths;
use crate::record::DeviceNumber;
use crate::records::{self, RecordError};
use crate::table::PLACEHOLDER_IFINDEX_FIRST;
use crate::tap::TapError;
use rustix::io::Errno;
use std::collections::BTreeSet;

/// The ends of the cable under the placeholders.
const CABLE: [&str; 2] = ["mvtpark-a", "mvtpark-b"];

/// Name of a placeholder without its minor.
const PREFIX: &str = "mvtpark";

/// Lowest minor that the kernel gives (`tap_get_minor` of `drivers/net/tap.c`).
const MINOR_MIN: u32 = 1;

/// Highest minor: the kernel has 20 bits for it.
const MINOR_MAX: u32 = 0xf_ffff;

const NODE: Place = Place::Home(Home::Node);

/// A placeholder could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum ParkError {
    /// The kernel refused.
    #[error("placeholder for a tap minor")]
    Netlink(#[from] NetlinkError),
    /// The minor of the placeholder is unknown.
    #[error("placeholder for a tap minor")]
    Tap(#[from] TapError),
    /// The node-wide lock could not be taken.
    #[error("placeholder for a tap minor")]
    Lock(#[from] LockError),
    /// The records of tap numbers could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The taps of the machine could not be listed.
    #[error("list the taps of this machine")]
    List(#[source] std::io::Error),
    /// The number cannot be one of macvtap's.
    #[error("tap number {0} has a minor above {MINOR_MAX}")]
    Minor(DeviceNumber),
}

/// What [`release`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Placeholders removed: no record names their minor any more.
    pub removed: usize,
    /// Placeholders that stay.
    pub kept: usize,
}

/// Whether a link of the node's namespace is one of ours: placeholder or cable. An inventory leaves them out.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Makes the placeholder for a number that was free a moment ago. The caller holds the node-wide lock. When another
/// process took the number meanwhile, there is no placeholder, which the caller's next link will show.
pub(crate) fn park<K: Kernel>(kernel: &mut K, number: DeviceNumber) -> Result<(), ParkError> {
    let placeholder = Macvtap {
        lower: cable(kernel)?.index,
        index: placeholder_index(number)?,
        name: placeholder_name(number)?,
        mode: Mode::Bridge,
        mac: None,
        mtu: None,
        promiscuous: false,
        all_multicast: false,
    };
    kernel.create(Home::Node, NewLink::Macvtap(&placeholder))?;
    let got = kernel.tap(Home::Node, &placeholder.name, placeholder.index);
    if got.as_ref().ok() != Some(&number) {
        kernel.delete(NODE, placeholder.index)?;
    }
    got?;
    Ok(())
}

/// Makes a number the lowest that is free, if no other link has it: removes its placeholder, and makes one for each free
/// minor below, whose index is noted in `below`. The caller holds the node-wide lock.
pub(crate) fn make_lowest<K: Kernel>(
    kernel: &mut K,
    number: DeviceNumber,
    below: &mut Vec<u32>,
) -> Result<(), ParkError> {
    let keeper = kernel.find(NODE, &By::Index(placeholder_index(number)?))?;
    let name = placeholder_name(number)?;
    if let Some(keeper) = keeper.filter(|link| link.is_macvtap() && link.name == name.as_str()) {
        kernel.delete(NODE, keeper.index)?;
    }
    let taps = kernel.taps().map_err(ParkError::List)?.into_iter();
    let taken: BTreeSet<u32> =
        taps.filter(|(tap, _)| tap.major == number.major).map(|(tap, _)| tap.minor).collect();
    for minor in (MINOR_MIN..number.minor).filter(|minor| !taken.contains(minor)) {
        let free = DeviceNumber { minor, ..number };
        below.push(placeholder_index(free)?);
        park(kernel, free)?;
    }
    Ok(())
}

/// Removes the placeholders whose minor no record names, and the cable with the last one; and what killed processes left
/// where tap numbers are noted and records written.
pub fn release<K: Kernel>(paths: &Paths, kernel: &mut K) -> Result<Released, ParkError> {
    records::sweep_unfinished(paths)?;
    let _lock = lock::node(paths)?;
    records::sweep_taps(paths)?;
    let mut released = Released::default();
    for (number, index) in kernel.taps().map_err(ParkError::List)? {
        let keeps = placeholder_index(number).ok() == Some(index);
        // One whose maker was killed before it saw that the kernel gave it another minor keeps nothing.
        let Some(minor) = index.checked_sub(PLACEHOLDER_IFINDEX_FIRST) else { continue };
        let name = placeholder_name(DeviceNumber { minor, ..number })?;
        let link = kernel.find(NODE, &By::Index(index))?;
        // Another node's on the same kernel, or a stranger with such an index.
        if link.is_none_or(|link| !link.is_macvtap() || link.name != name.as_str()) {
            continue;
        }
        // A damaged record might name it.
        if !keeps || matches!(records::with_tap(paths, number), Ok(None)) {
            kernel.delete(NODE, index)?;
            released.removed += 1;
        } else {
            released.kept += 1;
        }
    }
    if released.kept == 0
        && let Some(cable) = find_cable(kernel)?
    {
        kernel.delete(NODE, cable.index)?;
    }
    Ok(released)
}

fn cable<K: Kernel>(kernel: &mut K) -> Result<Link, ParkError> {
    if let Some(cable) = find_cable(kernel)? {
        return Ok(cable);
    }
    let [name, peer] = CABLE.map(fixed_name);
    let veth = Veth { name: name?, peer: peer? };
    kernel.create(Home::Node, NewLink::Veth(&veth))?;
    let vanished =
        || NetlinkError::Refused { what: format!("look for {}", veth.name), said: None, errno: Errno::NODEV };
    Ok(find_cable(kernel)?.ok_or_else(vanished)?)
}

fn find_cable<K: Kernel>(kernel: &mut K) -> Result<Option<Link>, ParkError> {
    let [name, _] = CABLE.map(fixed_name);
    let found = kernel.find(NODE, &By::Name(name?))?;
    Ok(found.filter(|link| link.kind.as_deref() == Some("veth")))
}

fn placeholder_index(number: DeviceNumber) -> Result<u32, ParkError> {
    match number.minor {
        minor @ 0..=MINOR_MAX => Ok(PLACEHOLDER_IFINDEX_FIRST | minor),
        _ => Err(ParkError::Minor(number)),
    }
}

fn placeholder_name(number: DeviceNumber) -> Result<IfName, ParkError> {
    let name = format!("{PREFIX}{}", number.minor).parse();
    name.map_err(|_| ParkError::Minor(number))
}

/// Our own names are valid; an error here would be a mistake in this file.
fn fixed_name(name: &str) -> Result<IfName, ParkError> {
    let invalid =
        |_| NetlinkError::Refused { what: format!("name a link {name}"), said: None, errno: Errno::INVAL };
    Ok(name.parse().map_err(invalid)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_minor_has_a_name_and_an_index_of_its_own() {
        for minor in [0, 1, MINOR_MAX] {
            let number = DeviceNumber { major: 246, minor };
            assert_eq!(placeholder_index(number).unwrap(), PLACEHOLDER_IFINDEX_FIRST + minor);
            assert!(is_ours(placeholder_name(number).unwrap().as_str()));
        }
        let number = DeviceNumber { major: 246, minor: MINOR_MAX + 1 };
        assert!(matches!(placeholder_index(number), Err(ParkError::Minor(_))));
        assert!(CABLE.iter().all(|name| fixed_name(name).is_ok() && is_ours(name)));
    }
}

//! The way back: a NIC that a record names is on the node again, as it was.
//!
//! Each step can be repeated, so it does not matter how far a killed process came. A namespace that ends puts the NIC
//! into the initial namespace, under the pod's name or as `dev<index>`; there it is known by its hardware.

use crate::kernel::{Home, Kernel, OpenError, Place};
use crate::link::{self, BadIfName, Change, IfName, Link, Move, NicLink};
use crate::links::Links;
use crate::netlink::NetlinkError;
use crate::netns::{self, NetnsError, NetnsId};
use crate::record::{Attachment, Holder, Nic};
use crate::table::LinkIdentity;
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use tracing::warn;

/// All devices of the machine, whatever namespace their links are in.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// A setting that only the initial network namespace has (`net/core/sysctl_net_core.c`).
const ONLY_INITIAL: &str = "/proc/sys/net/core/netdev_max_backlog";

/// How often a name that somebody takes at the same moment is exchanged.
const NAME_ROUNDS: u32 = 3;

/// So many names of 128 bytes, the longest there are, fit into one attribute of 64 KiB, which a pod's may together fill.
const NAMES_AT_ONCE: usize = 64;

const NODE: Place = Place::Home(Home::Node);

/// Where a NIC is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// On the node, as before.
    Back,
    /// Nowhere: it was unplugged, has another driver, or was made by software and ended with its namespace.
    Gone,
    /// In the initial network namespace, which is not this node's.
    Elsewhere,
}

/// A NIC is not back. Its record stays, so it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReturnError {
    /// The pod's namespace exists, and we may not enter it.
    #[error(
        "NIC {name} is in network namespace {}, which this process may not enter; it comes back with the pod's DEL or when the namespace ends",
        netns.display()
    )]
    NotAllowed {
        /// The NIC's name on the node.
        name: String,
        /// The namespace.
        netns: PathBuf,
        /// What the kernel answered.
        #[source]
        source: NetnsError,
    },
    /// The pod's namespace exists, and nothing leads to it.
    #[error(
        "NIC {name} is in a network namespace that has no path any more; it comes back when the last process there ends"
    )]
    Held {
        /// The NIC's name on the node.
        name: String,
    },
    /// The kernel has not yet put it where we can see it.
    #[error(
        "NIC {name} ({pci}) is in no network namespace that can be seen from here; the kernel brings it back when the one it is in has ended"
    )]
    InTransit {
        /// The NIC's name on the node.
        name: String,
        /// Its address.
        pci: crate::pci::PciAddress,
    },
    /// The record has a name that no link can have.
    #[error("attachment record is damaged")]
    Name(#[from] BadIfName),
    /// The node's own namespace could not be opened.
    #[error("open the network namespace of the node")]
    Node(#[source] Errno),
    /// The kernel refused.
    #[error("bring NIC {name} back to the node")]
    Netlink {
        /// The NIC's name on the node.
        name: String,
        /// What the kernel answered.
        #[source]
        source: NetlinkError,
    },
}

/// Brings the NIC back.
pub(crate) fn give_back<K: Kernel>(
    kernel: &mut K,
    record: &Attachment,
    nic: &Nic,
) -> Result<Returned, ReturnError> {
    let name: IfName = nic.name.parse()?;
    let refused = |source| ReturnError::Netlink { name: nic.name.clone(), source };
    match enter(kernel, record, nic)? {
        Some(mut pod) => {
            let links = pod.nics().map_err(refused)?;
            if let Some(found) = link::recorded(&links, nic) {
                for upper in links.iter().filter(|link| link.is_on(found.link.index)) {
                    delete_upper(&mut pod, upper, nic).map_err(refused)?;
                }
                fetch(kernel, &mut pod, found.clone(), nic, record.lower_ifindex, &name)?;
            }
        }
        None => {
            if let Some(id) = record.netns_id {
                let place = Place::Numbered(NetnsId(id));
                if link::recorded(&kernel.nics(place).map_err(refused)?, nic).is_some() {
                    return Err(ReturnError::Held { name: nic.name.clone() });
                }
            }
        }
    }
    let links = kernel.nics(NODE).map_err(refused)?;
    let found = link::recorded(&links, nic);
    let Some(found) = found.or_else(|| links.iter().find(|link| link.is_still(&nic.identity))) else {
        if links.iter().any(|link| link.displaces(&nic.identity)) {
            warn!(nic = nic.name, pci = %nic.pci, "NIC is gone: another one is in its place");
            return Ok(Returned::Gone);
        }
        return explain_absence(nic);
    };
    let is_free = link::named(&links, &nic.name).is_none_or(|other| other.link.index == found.link.index);
    restore(kernel.node_links(), found, nic, is_free.then_some(&name)).map_err(refused)?;
    Ok(Returned::Back)
}

/// The links of the record's pod; none when its namespace is not at its path any more.
fn enter<K: Kernel>(kernel: &mut K, record: &Attachment, nic: &Nic) -> Result<Option<K::Links>, ReturnError> {
    let Holder::Pod { netns, netns_inode, .. } = &record.holder else {
        return Ok(None);
    };
    let name = nic.name.clone();
    kernel.enter(Path::new(netns), *netns_inode).map_err(|error| match error {
        OpenError::Netns(source) => ReturnError::NotAllowed { name, netns: netns.into(), source },
        OpenError::Netlink(source) => ReturnError::Netlink { name, source },
    })
}

/// A NIC in one place; none when it is not there.
pub fn find<K: Kernel>(kernel: &mut K, place: Place, nic: &Nic) -> Result<Option<Link>, NetlinkError> {
    let links = kernel.nics(place)?;
    Ok(link::recorded(&links, nic).map(|found| found.link.clone()))
}

/// Moves the NIC from the pod to the node under its old name, and where possible with its old index.
fn fetch<K: Kernel>(
    kernel: &mut K,
    pod: &mut K::Links,
    mut found: NicLink,
    nic: &Nic,
    index: u32,
    name: &IfName,
) -> Result<(), ReturnError> {
    let refused = |source| ReturnError::Netlink { name: name.to_string(), source };
    let node = netns::own().map_err(ReturnError::Node)?;
    if found.link.up {
        // Moving a link that is up makes the kernel wait twice as long.
        let down = Change::up(false);
        let what = format_args!("set NIC {name} down in the pod");
        unless_refused(pod.set(found.link.index, down, &what), nic).map_err(refused)?;
    }
    let mut rounds = 0;
    loop {
        rounds += 1;
        let links = kernel.nics(NODE).map_err(refused)?;
        // As the kernel does when a namespace ends: who is there keeps its names.
        let is_taken = |other: &str| link::named(&links, other).is_some();
        let lost: Vec<&String> = nic.alt_names.iter().filter(|other| is_taken(other)).collect();
        if rounds == 1 && !lost.is_empty() {
            warn!(nic = %name, names = ?lost, "other names are taken on the node by now and were removed");
        }
        remove_names(pod, &found, nic, |other| !is_taken(other)).map_err(refused)?;
        let substitute = if is_taken(name.as_str()) { substitute(&links, index) } else { None };
        let is_free = |index: &u32| links.iter().all(|link| link.link.index != *index);
        let to = Move {
            index: found.link.index,
            name: substitute.as_ref().unwrap_or(name),
            new_index: Some(index).filter(is_free),
            netns: node.as_fd(),
        };
        let moved = pod.transfer(to, &format_args!("move NIC {name} back to the node"));
        let Err(error) = moved else { return Ok(()) };
        // The kernel moves first and renames then: the NIC can be on the node although something was refused.
        let links = kernel.nics(NODE).map_err(refused)?;
        if link::recorded(&links, nic).is_some() {
            return Ok(());
        }
        let is_race = matches!(error.errno(), Some(Errno::EXIST | Errno::BUSY | Errno::NODEV));
        if !is_race || rounds == NAME_ROUNDS {
            return Err(refused(error));
        }
        let links = pod.nics().map_err(refused)?;
        match link::recorded(&links, nic) {
            Some(again) => found = again.clone(),
            None => return Ok(()),
        }
    }
}

/// Deletes a link that the pod built on its NIC (a VLAN, a macvlan). Such links stay on a NIC that moves, so a pod that lives on
/// would hear and send through what is the node's or another pod's.
fn delete_upper(pod: &mut impl Links, upper: &NicLink, nic: &Nic) -> Result<(), NetlinkError> {
    let Link { index, name, .. } = &upper.link;
    let what = format_args!("delete link {name} on NIC {} in the pod", nic.name);
    match pod.delete(*index, &what) {
        // Gone with another one.
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
        outcome => unless_refused(outcome, nic),
    }
}

/// Takes from a NIC the other names that it did not have on the node, or may not keep: each is a name that no other link
/// of the namespace can have, and by which pools may choose.
fn remove_names(
    links: &mut impl Links,
    found: &NicLink,
    nic: &Nic,
    may_keep: impl Fn(&str) -> bool,
) -> Result<(), NetlinkError> {
    let names = found.other_names_but(|name| may_keep(name) && nic.alt_names.iter().any(|own| own == name));
    for names in names.chunks(NAMES_AT_ONCE) {
        let what = format_args!("remove names of NIC {}", nic.name);
        unless_refused(links.remove_names(found.link.index, names, &what), nic)?;
    }
    Ok(())
}

/// Makes a warning of what the kernel or the driver refused: they would refuse it each time, and the NIC is none the less
/// back. That the kernel could not be asked stays an error.
fn unless_refused(outcome: Result<(), NetlinkError>, nic: &Nic) -> Result<(), NetlinkError> {
    match outcome {
        Err(error @ NetlinkError::Refused { errno, .. }) => {
            warn!(nic = nic.name, %error, %errno, "NIC was not fully restored");
            Ok(())
        }
        outcome => outcome,
    }
}

/// A name for a NIC whose own is taken, as the kernel would choose it.
fn substitute(links: &[NicLink], index: u32) -> Option<IfName> {
    let names = (0..100).map(|n| if n == 0 { format!("dev{index}") } else { format!("dev{index}n{n}") });
    names.filter(|name| link::named(links, name).is_none()).find_map(|name| name.parse().ok())
}

/// Gives a NIC on the node what it had there. Changes only what differs: since it came back somebody may have used it.
/// Continues after an error and returns the first one. Name and address must be restored, because others know the NIC by them; the
/// rest if the driver allows. `name` is absent when somebody else has it by now.
fn restore(
    node: &mut impl Links,
    found: &NicLink,
    nic: &Nic,
    name: Option<&IfName>,
) -> Result<(), NetlinkError> {
    let now = &found.link;
    if name.is_none() {
        warn!(nic = nic.name, name = now.name, "name is taken on the node by now, so the NIC keeps another");
    }
    let mut first_error = remove_names(node, found, nic, |_| true).err();
    let parts = differences(found, nic, name.filter(|name| name.as_str() != now.name));
    for wanted in foreign_programs(found, nic).chain(parts).filter(|wanted| *wanted != Change::default()) {
        let restored = node.set(now.index, wanted, &format_args!("restore NIC {}", nic.name));
        let is_needed = wanted.name.is_some() || wanted.mac.is_some();
        if let Err(error) = if is_needed { restored } else { unless_refused(restored, nic) } {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// What of a NIC is not as it was, in the order in which it is restored.
fn differences<'n>(found: &NicLink, nic: &'n Nic, name: Option<&'n IfName>) -> [Change<'n>; 10] {
    let now = &found.link;
    let mac = nic.mac.filter(|mac| now.device_mac() != Some(*mac));
    let differs = |wanted: bool, now: bool| (wanted != now).then_some(wanted);
    let alias = nic.alias.as_deref().unwrap_or_default();
    let resets = matches!(&nic.identity, LinkIdentity::Hardware { mac, .. }
        if found.permanent_mac.is_some_and(|own| own != *mac));
    let (tuning, now_tuned) = (&nic.tuning, &found.tuning);
    [
        // Neither older kernels nor every driver change these while the link is up.
        Change {
            up: Some(false).filter(|_| now.up && (name.is_some() || mac.is_some())),
            ..Change::default()
        },
        Change { name, ..Change::default() },
        Change { mac, ..Change::default() },
        Change { mtu: Some(nic.mtu).filter(|mtu| now.mtu != *mtu), ..Change::default() },
        Change {
            promiscuous: differs(nic.promiscuous, now.promiscuous),
            all_multicast: differs(nic.all_multicast, now.all_multicast),
            // As every NIC is made.
            arp: differs(true, found.arp),
            multicast: differs(true, found.multicast),
            ..Change::default()
        },
        Change {
            alias: Some(alias).filter(|alias| *alias != found.alias.as_deref().unwrap_or_default()),
            ..Change::default()
        },
        Change {
            queue_length: tuning.queue_length.filter(|wanted| now_tuned.queue_length != Some(*wanted)),
            group: tuning.group.filter(|wanted| now_tuned.group != Some(*wanted)),
            dormant: tuning.dormant.filter(|wanted| now_tuned.dormant != Some(*wanted)),
            ..Change::default()
        },
        // A driver that took the pod's address for the permanent one takes the own one when it is reset.
        Change { up: Some(true).filter(|_| resets && !nic.up), ..Change::default() },
        Change { up: Some(false).filter(|_| resets && !nic.up), ..Change::default() },
        // Set down above, or in the pod, or by the kernel.
        Change { up: Some(nic.up).filter(|up| *up), ..Change::default() },
    ]
}

/// The removal of XDP programs that the NIC did not have on the node. One that a pod attached would see and change the
/// frames of the next pod.
fn foreign_programs<'f>(found: &'f NicLink, nic: &'f Nic) -> impl Iterator<Item = Change<'f>> {
    let own = nic.programs.as_ref();
    let is_foreign = move |program: &u32| own.is_some_and(|own| !own.contains(program));
    let foreign = found.programs.iter().filter(move |(_, program)| is_foreign(program));
    foreign.map(|(place, _)| Change { detach: Some(*place), ..Change::default() })
}

/// A NIC that is neither in the pod nor on the node.
fn explain_absence(nic: &Nic) -> Result<Returned, ReturnError> {
    let LinkIdentity::Hardware { parent, .. } = &nic.identity else {
        warn!(nic = nic.name, "link ended with the pod's network namespace");
        return Ok(Returned::Gone);
    };
    let function = Path::new(PCI_DEVICES).join(nic.pci.to_string());
    // The directory is there as long as the device has a link in any namespace.
    let links = [function.join("net"), function.join(parent).join("net")];
    if !links.iter().any(|directory| directory.is_dir()) {
        warn!(nic = nic.name, pci = %nic.pci, "NIC is gone: unplugged, or taken by another driver");
        return Ok(Returned::Gone);
    }
    if Path::new(ONLY_INITIAL).exists() {
        return Err(ReturnError::InTransit { name: nic.name.clone(), pci: nic.pci });
    }
    warn!(
        nic = nic.name,
        pci = %nic.pci,
        "NIC is in another namespace than this node's, probably the initial one of the machine; move it back by hand"
    );
    Ok(Returned::Elsewhere)
}

#[cfg(test)]
mod tests;

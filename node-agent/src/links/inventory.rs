//! All links of the node, and what follows from how they are joined.
//!
//! A pure index: events and lists go in, answers come out. Whatever order events come in, the index ends as a fresh
//! list would make it. Most events change nothing (each macvtap made or removed in any pod is announced on its lower
//! link too) and are distinguished here.
//!
//! A NIC that is in a pod is not in the node's namespace, and still the node's: it is kept beside the others.

mod index;

use crate::links::link::{Kind, Link};
use index::LinkIndex;
use macvtap::link::IfName;
use macvtap::pci::PciAddress;
use std::collections::{BTreeMap, BTreeSet};

/// The links of the node's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    links: BTreeMap<u32, Link>,
    index: LinkIndex,
    addressed: BTreeSet<u32>,
    default_routes: BTreeSet<u32>,
    in_pods: BTreeMap<u32, Link>,
    in_pods_index: LinkIndex,
    lacks_macvtap: bool,
}

/// Whether the index is another one than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Change {
    /// Nothing that matters to us.
    Nothing,
    /// Something.
    Something,
}

/// What stands in the way of using a link, apart from any pool's wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The kernel makes no macvtap on such a link.
    Kind(Kind),
    /// It stands for a function of the NIC, not for the network.
    Representor,
    /// It is a port of that link, whose receive handler it has.
    EnslavedTo(String),
    /// That ipvlan has its receive handler.
    IpvlanParent(String),
    /// That macvlan or macvtap has the whole link.
    Passthru(String),
}

/// Why a link cannot be given away as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tie {
    /// The host reaches the world by it.
    DefaultRoute,
    /// The host has an address on it.
    HostAddress,
    /// That link is built on it.
    Upper(String),
}

impl Inventory {
    /// Takes a link that appeared or changed.
    pub fn apply(&mut self, link: Link) -> Change {
        if self.links.get(&link.ifindex) == Some(&link) {
            return Change::Nothing;
        }
        let _ = self.remove(link.ifindex);
        self.index.add(&link);
        self.links.insert(link.ifindex, link);
        Change::Something
    }

    /// Drops a link that went away.
    pub fn remove(&mut self, ifindex: u32) -> Change {
        let removed = self.links.remove(&ifindex);
        if let Some(link) = &removed {
            self.index.remove(link);
        }
        Change::from(removed.is_some())
    }

    /// Takes the speed of a link in Mbit/s.
    pub fn set_speed(&mut self, ifindex: u32, speed: u32) -> Change {
        let link = self.links.get_mut(&ifindex);
        Change::from(link.is_some_and(|link| link.hardware.speed_mbps.replace(speed) != Some(speed)))
    }

    /// Takes a full list in place of everything known.
    pub fn reset(&mut self, links: impl IntoIterator<Item = Link>) -> Change {
        let links = links.into_iter().map(|link| (link.ifindex, link)).collect::<BTreeMap<_, _>>();
        self.index = LinkIndex::of(links.values());
        Change::from(std::mem::replace(&mut self.links, links) != self.links)
    }

    /// Takes the indexes of all links on which the host has a global address.
    pub fn set_addressed(&mut self, addressed: BTreeSet<u32>) -> Change {
        Change::from(std::mem::replace(&mut self.addressed, addressed) != self.addressed)
    }

    /// Takes the indexes of all links that a default route uses.
    pub fn set_default_routes(&mut self, links: BTreeSet<u32>) -> Change {
        Change::from(std::mem::replace(&mut self.default_routes, links) != self.default_routes)
    }

    /// Takes whether the kernel has macvtap.
    pub fn set_macvtap(&mut self, present: bool) -> Change {
        Change::from(std::mem::replace(&mut self.lacks_macvtap, !present) == present)
    }

    /// Whether the kernel is known to have no macvtap.
    pub fn lacks_macvtap(&self) -> bool {
        self.lacks_macvtap
    }

    /// Takes the NICs that are in pods, as they were before, each under an index that no link of the node has.
    pub fn set_in_pods(&mut self, nics: impl IntoIterator<Item = Link>) {
        let nics = nics.into_iter().map(|nic| (nic.ifindex, nic));
        self.in_pods = nics.filter(|(ifindex, _)| !self.links.contains_key(ifindex)).collect();
        self.in_pods_index = LinkIndex::of(self.in_pods.values());
    }

    /// Whether this is a NIC that is in a pod.
    pub fn is_in_pod(&self, ifindex: u32) -> bool {
        self.in_pods.contains_key(&ifindex) && !self.links.contains_key(&ifindex)
    }

    /// The link with this index.
    pub fn get(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex).or_else(|| self.in_pods.get(&ifindex))
    }

    /// All links: first NICs that are in pods, then those of the namespace, in the order of their indexes.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.in_pods.values().filter(|nic| !self.links.contains_key(&nic.ifindex)).chain(self.present())
    }

    /// Whether a link of the namespace has this index.
    pub fn has(&self, ifindex: u32) -> bool {
        self.links.contains_key(&ifindex)
    }

    /// The links of the namespace, in the order of their indexes.
    pub fn present(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// Links whose index is in this range, in the order of their indexes.
    pub fn within(&self, indexes: std::ops::Range<u32>) -> impl Iterator<Item = &Link> {
        self.links.range(indexes).map(|(_, link)| link)
    }

    /// Another link of the same PCI function: a port of the same card, or a representor.
    pub fn same_function(&self, link: &Link) -> Option<&Link> {
        let function = link.pci_function()?;
        let away = self.in_pods_index.with_function(function).filter(|ifindex| !self.has(*ifindex));
        let mut others = away.chain(self.index.with_function(function));
        self.get(others.find(|other| *other != link.ifindex)?)
    }

    /// The NICs of the namespace that are this PCI function.
    pub fn with_function(&self, function: PciAddress) -> impl Iterator<Item = &Link> {
        self.index.with_function(function).filter_map(|ifindex| self.links.get(&ifindex))
    }

    /// Whether a default route uses the link.
    pub fn has_default_route(&self, ifindex: u32) -> bool {
        self.default_routes.contains(&ifindex)
    }

    /// Name of the link that it is a part of.
    pub fn master(&self, link: &Link) -> Option<String> {
        link.master.as_ref().map(|master| self.name_of(master.ifindex))
    }

    /// What forbids any macvtap on the link.
    pub fn obstacle(&self, link: &Link) -> Option<Obstacle> {
        match &link.kind {
            // On a macvlan or macvtap the kernel silently uses the link below: the device would not be where it claims
            // to be.
            Kind::Loopback | Kind::Macvlan | Kind::Macvtap | Kind::NotEthernet(_) => {
                return Some(Obstacle::Kind(link.kind.clone()));
            }
            // The kernel refuses it (EINVAL).
            Kind::Other(kind) if is_ipvlan(kind) || kind == "vrf" => {
                return Some(Obstacle::Kind(link.kind.clone()));
            }
            Kind::Physical
            | Kind::Bond
            | Kind::Vlan
            | Kind::Veth
            | Kind::Dummy
            | Kind::Bridge
            | Kind::Team
            | Kind::Other(_) => {}
        }
        if link.is_representor() {
            return Some(Obstacle::Representor);
        }
        // A VRF takes no receive handler, every other master does.
        if let Some(master) = link.master.as_ref().filter(|master| master.kind != "vrf") {
            return Some(Obstacle::EnslavedTo(self.name_of(master.ifindex)));
        }
        // Devices of ours are not an obstacle to each other: who has the link is decided elsewhere.
        let mut strangers = self.children(link.ifindex).filter(|child| !is_ours(child));
        strangers.find_map(|child| match &child.kind {
            Kind::Macvlan | Kind::Macvtap if child.passthru => Some(Obstacle::Passthru(child.name.clone())),
            kind if is_ipvlan(kind.rtnetlink()) => Some(Obstacle::IpvlanParent(child.name.clone())),
            _ => None,
        })
    }

    /// What forbids giving the link away as a whole.
    pub fn tie(&self, link: &Link) -> Option<Tie> {
        if self.default_routes.contains(&link.ifindex) {
            return Some(Tie::DefaultRoute);
        }
        if self.addressed.contains(&link.ifindex) {
            return Some(Tie::HostAddress);
        }
        // Our own devices are links on it too, where a pod has the tap alone.
        let upper = self.children(link.ifindex).find(|child| !is_ours(child));
        upper.map(|upper| Tie::Upper(upper.name.clone()))
    }

    /// Links made on this one, in this namespace. A veth's other end is not a child.
    fn children(&self, ifindex: u32) -> impl Iterator<Item = &Link> {
        self.index.on(ifindex).filter_map(|child| self.links.get(&child))
    }

    fn name_of(&self, ifindex: u32) -> String {
        match self.links.get(&ifindex) {
            Some(link) => link.name.clone(),
            None => format!("link {ifindex}"),
        }
    }
}

/// Whether the link is the tap of a pod without a network, made by this project in the node's namespace. Its index alone
/// does not show: the kernel's own numbers reach the project's ranges after some sixteen million links.
pub fn is_ours(link: &Link) -> bool {
    link.kind == Kind::Macvtap && link.name == IfName::tap_only(link.ifindex).as_str()
}

fn is_ipvlan(kind: &str) -> bool {
    matches!(kind, "ipvlan" | "ipvtap")
}

impl From<bool> for Change {
    fn from(changed: bool) -> Self {
        if changed { Self::Something } else { Self::Nothing }
    }
}

impl std::ops::BitOr for Change {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self::from(self == Self::Something || other == Self::Something)
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Finds links by the relations between them; a search among all links would make each decision quadratic.

use crate::links::link::{Kind, Link};
use macvtap::pci::PciAddress;
use std::collections::{BTreeMap, BTreeSet};

/// Indexes of links by other attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkIndex {
    by_function: BTreeMap<PciAddress, BTreeSet<u32>>,
    by_lower: BTreeMap<u32, BTreeSet<u32>>,
}

impl LinkIndex {
    pub(super) fn of<'l>(links: impl IntoIterator<Item = &'l Link>) -> Self {
        let mut index = Self::default();
        links.into_iter().for_each(|link| index.add(link));
        index
    }

    pub(super) fn add(&mut self, link: &Link) {
        if let Some(function) = link.pci_function() {
            self.by_function.entry(function).or_default().insert(link.ifindex);
        }
        if let Some(lower) = lower(link) {
            self.by_lower.entry(lower).or_default().insert(link.ifindex);
        }
    }

    pub(super) fn remove(&mut self, link: &Link) {
        if let Some(function) = link.pci_function() {
            take(&mut self.by_function, &function, link.ifindex);
        }
        if let Some(lower) = lower(link) {
            take(&mut self.by_lower, &lower, link.ifindex);
        }
    }

    /// NICs that are this PCI function, in the order of their indexes.
    pub(super) fn with_function(&self, function: PciAddress) -> impl Iterator<Item = u32> {
        self.by_function.get(&function).into_iter().flatten().copied()
    }

    /// Links made on this one, in the order of their indexes.
    pub(super) fn on(&self, lower: u32) -> impl Iterator<Item = u32> {
        self.by_lower.get(&lower).into_iter().flatten().copied()
    }
}

/// The link that it is made on. A veth's other end is none.
fn lower(link: &Link) -> Option<u32> {
    link.lower.filter(|_| link.kind != Kind::Veth)
}

fn take<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<u32>>, key: &K, ifindex: u32) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&ifindex);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

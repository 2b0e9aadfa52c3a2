//! What is known of the links of a node, by index and by PCI function.

use macvtap::pci::PciAddress;
use macvtap::table::LinkIdentity;
use std::collections::BTreeMap;

/// Name and identity of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name now.
    pub name: String,
    /// What it is known by across boots.
    pub identity: LinkIdentity,
    /// The PCI function it is.
    pub pci: Option<PciAddress>,
}

/// Names and identities of all links of a node.
#[derive(Clone, Debug, Default)]
pub struct KnownLinks {
    by_index: BTreeMap<u32, Known>,
    by_function: BTreeMap<PciAddress, Vec<u32>>,
}

impl KnownLinks {
    /// Returns the link with this index.
    pub fn get(&self, ifindex: u32) -> Option<&Known> {
        self.by_index.get(&ifindex)
    }

    /// Whether a link has this index.
    pub fn has(&self, ifindex: u32) -> bool {
        self.by_index.contains_key(&ifindex)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Known)> {
        self.by_index.iter().map(|(ifindex, known)| (*ifindex, known))
    }

    /// The NICs that are this PCI function.
    pub(super) fn with_function(&self, function: PciAddress) -> impl Iterator<Item = (u32, &Known)> {
        let indexes = self.by_function.get(&function).into_iter().flatten();
        indexes.filter_map(|ifindex| Some((*ifindex, self.get(*ifindex)?)))
    }
}

impl FromIterator<(u32, Known)> for KnownLinks {
    fn from_iter<T: IntoIterator<Item = (u32, Known)>>(links: T) -> Self {
        let by_index: BTreeMap<u32, Known> = links.into_iter().collect();
        let mut by_function: BTreeMap<PciAddress, Vec<u32>> = BTreeMap::new();
        for (ifindex, known) in &by_index {
            if let Some(function) = known.pci {
                by_function.entry(function).or_default().push(*ifindex);
            }
        }
        Self { by_index, by_function }
    }
}

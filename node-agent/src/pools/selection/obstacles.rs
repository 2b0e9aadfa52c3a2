//! Why a link cannot be used, in words for people.

use super::Refusal;
use crate::links::inventory::{Inventory, Obstacle, Tie};
use crate::links::link::{Kind, Link};
use macvtap_crds::v1alpha1::reason::LinkReason;

/// Why no macvtap can be made on the link.
pub fn macvtap_obstacle(inventory: &Inventory, link: &Link) -> Option<Refusal> {
    let lacks = inventory.lacks_macvtap().then(|| Refusal {
        reason: LinkReason::KernelWithoutMacvtap,
        message: format!(
            "no macvtap can be made on {}: the kernel has no macvtap; install its module (`modprobe macvtap`)",
            link.name
        ),
    });
    lacks.or_else(|| obstacle(inventory, link))
}

/// Why the link cannot be used, whatever the type of the pool.
pub fn obstacle(inventory: &Inventory, link: &Link) -> Option<Refusal> {
    let name = &link.name;
    let (reason, message) = match inventory.obstacle(link)? {
        Obstacle::Kind(Kind::Loopback) => {
            (LinkReason::KindNotSupported, "no macvtap can be made on the loopback link".to_owned())
        }
        Obstacle::Kind(kind @ (Kind::Macvlan | Kind::Macvtap)) => {
            let message = format!("{name} is itself a {}; use the link below it", kind.rtnetlink());
            (LinkReason::KindNotSupported, message)
        }
        Obstacle::Kind(Kind::Other(kind)) => {
            (LinkReason::KindNotSupported, format!("no macvtap can be made on {kind} {name}"))
        }
        Obstacle::Kind(kind) => {
            let kind = if kind.rtnetlink().is_empty() { "no kind" } else { kind.rtnetlink() };
            (LinkReason::KindNotSupported, format!("{name} ({kind}) is not an Ethernet link"))
        }
        Obstacle::Representor => {
            let port = link.port.as_deref().unwrap_or_default();
            let message = format!("{name} represents port {port} of its NIC and does not reach the network");
            (LinkReason::KindNotSupported, message)
        }
        Obstacle::EnslavedTo(master) => {
            (LinkReason::EnslavedTo, format!("{name} is a port of {master}; use {master}"))
        }
        Obstacle::IpvlanParent(child) => {
            (LinkReason::HasUpper, format!("ipvlan {child} takes what {name} receives; remove {child}"))
        }
        Obstacle::Passthru(child) => {
            (LinkReason::PassthruInUse, format!("{child} has {name} in passthru mode; remove {child}"))
        }
    };
    Some(Refusal { reason, message })
}

/// Why the link cannot be given away as a whole.
pub fn tie(inventory: &Inventory, link: &Link) -> Option<Refusal> {
    let name = &link.name;
    let (reason, message) = match inventory.tie(link)? {
        Tie::DefaultRoute => (LinkReason::DefaultRoute, format!("a default route of the node uses {name}")),
        Tie::HostAddress => (LinkReason::HostAddress, format!("the node has an address on {name}")),
        Tie::Upper(upper) => (LinkReason::HasUpper, format!("{upper} is built on {name}")),
    };
    Some(Refusal { reason, message })
}

/// Why the link cannot be given to a pod itself (type `HostDevice`).
pub fn host_device_obstacle(inventory: &Inventory, link: &Link) -> Option<Refusal> {
    not_a_nic(inventory, link).or_else(|| obstacle(inventory, link)).or_else(|| tie(inventory, link))
}

/// Why the link is nothing that has a PCI address of its own, which is what the kubelet calls a whole NIC.
pub(super) fn not_a_nic(inventory: &Inventory, link: &Link) -> Option<Refusal> {
    let name = &link.name;
    let message = if link.kind != Kind::Physical {
        format!("{name} is not a NIC, and type HostDevice gives whole NICs")
    } else if link.pci_function().is_none() {
        format!("{name} has no PCI function of its own, and type HostDevice names NICs by PCI address")
    } else {
        let other = inventory.same_function(link)?;
        format!("{} is of the same PCI function as {name}, so they cannot be distinguished", other.name)
    };
    Some(Refusal { reason: LinkReason::KindNotSupported, message })
}

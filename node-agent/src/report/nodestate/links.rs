//! The links of the status, and what is wrong with each.

use super::{View, short};
use crate::devices::offer::LinkState;
use crate::links::link::{Kind, Link, Tag};
use crate::pools::selection::{self, Refusal};
use macvtap::mode::Mode;
use macvtap_crds::v1alpha1::nodestate::{LINKS_MAX, NodeLink};
use macvtap_crds::v1alpha1::reason::LinkReason;

/// NICs, bonds, VLANs, and what a pool matches. When there are too many, those in pools come first, and of these the
/// ones with a problem.
pub(super) fn listed(view: &View<'_>) -> (Vec<NodeLink>, u32) {
    let mut listed: Vec<NodeLink> = view
        .engine
        .world
        .inventory
        .iter()
        .filter_map(|link| {
            let outcome = view.step.selection.links.get(&link.ifindex)?;
            let matched = !outcome.pools.is_empty() || !outcome.refusals.is_empty();
            let candidate = matches!(link.kind, Kind::Physical | Kind::Bond | Kind::Vlan);
            let meant = candidate || (matched && !matches!(link.kind, Kind::Loopback | Kind::Macvtap));
            meant.then(|| {
                let pools =
                    outcome.pools.iter().map(|index| view.engine.world.pools[*index].name.clone()).collect();
                let refusal = if outcome.pools.is_empty() {
                    outcome
                        .refusals
                        .first()
                        .map(|(_, refusal)| refusal.clone())
                        .or_else(|| Some(not_selected(link)))
                } else {
                    trouble(view, link)
                };
                NodeLink { name: view.name_of(link), ..node_link(link, pools, refusal) }
            })
        })
        .collect();
    let is_well =
        |link: &NodeLink| link.reason.as_deref().is_none_or(|reason| reason == LinkReason::InPod.as_str());
    listed.sort_by_key(|link| (link.pools.is_empty(), is_well(link)));
    let truncated = listed.len().saturating_sub(LINKS_MAX);
    listed.truncate(LINKS_MAX);
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    (listed, u32::try_from(truncated).unwrap_or(u32::MAX))
}

fn not_selected(link: &Link) -> Refusal {
    Refusal { reason: LinkReason::NotSelected, message: format!("no pool selects {}", link.name) }
}

fn node_link(link: &Link, pools: Vec<String>, refusal: Option<Refusal>) -> NodeLink {
    NodeLink {
        name: link.name.clone(),
        alt_names: link.altnames.iter().take(16).cloned().collect(),
        kind: link.kind.api().as_str().to_owned(),
        mac: link.own_mac().map(|mac| mac.to_string()),
        mtu: Some(link.mtu),
        speed_mbps: link.hardware.speed_mbps,
        driver: link.hardware.driver.clone(),
        pci_address: link.hardware.pci_address.clone(),
        vendor: link.hardware.vendor.clone(),
        numa_node: link.hardware.numa_node,
        carrier: link.carrier,
        pools,
        reason: refusal.as_ref().map(|refusal| refusal.reason.as_str().to_owned()),
        message: refusal.map(|refusal| short(refusal.message)),
    }
}

/// The worst that is wrong with a link's devices, of any resource.
fn trouble(view: &View<'_>, link: &Link) -> Option<Refusal> {
    if let Some(pod) = view.engine.pod_of(link) {
        let message = match pod.name.as_str() {
            "" => format!("{} is in a pod", link.name),
            name => format!("{} is in pod {}/{name}", link.name, pod.namespace),
        };
        return Some(Refusal { reason: LinkReason::InPod, message });
    }
    let runs = view.step.offers.values().flat_map(|offer| &offer.runs);
    let unhealthy = runs.filter(|offered| offered.run.lower == link.ifindex && offered.run.advertised);
    let reason = unhealthy.into_iter().find_map(|offered| match offered.state {
        LinkState::Healthy => None,
        LinkState::Unhealthy(reason) => Some(reason),
    });
    let name = &link.name;
    if let Some(reason) = reason {
        let message = match reason {
            LinkReason::AdminDown => format!("{name} is switched off; `ip link set {name} up`"),
            LinkReason::NoCarrier => format!("{name} has no carrier"),
            LinkReason::MtuTooSmall => {
                format!("the MTU of {name} is {}, smaller than the pool's", link.mtu)
            }
            LinkReason::IndexTaken => view.taken(|_, offered| offered.run.lower == link.ifindex),
            _ => selection::macvtap_obstacle(&view.engine.world.inventory, link)
                .map_or_else(|| format!("devices of {name} are unhealthy"), |obstacle| obstacle.message),
        };
        return Some(Refusal { reason, message });
    }
    let evolution = &view.step.evolution;
    let refusal = |reason, message| Some(Refusal { reason, message });
    if evolution.mode_pending.iter().any(|(_, ifindex)| *ifindex == link.ifindex) {
        let message = format!("devices in use on {name} keep the earlier mode until they are free");
        return refusal(LinkReason::ModeChangePending, message);
    }
    if evolution.replaced.iter().any(|(_, replaced)| replaced == name) {
        let message = format!("{name} is another link than before; devices of the former one are in use");
        return refusal(LinkReason::LinkReplaced, message);
    }
    let mut runs = view.step.offers.values().flat_map(|offer| &offer.runs);
    if !runs.any(|offered| offered.run.lower == link.ifindex && offered.run.advertised) {
        let message = format!("other links have all devices that this node offers, none is left for {name}");
        return refusal(LinkReason::CapacityReached, message);
    }
    advice(view, link)
}

/// What pods on a link that works will miss.
fn advice(view: &View<'_>, link: &Link) -> Option<Refusal> {
    let name = &link.name;
    if let Some(mtu) = view.engine.lowered_mtu(link) {
        let message = format!(
            "the MTU of {name} was {mtu} while pods had devices on it and is {} now; those pods keep {mtu} until they \
             are recreated",
            link.mtu
        );
        return Some(Refusal { reason: LinkReason::MtuLowered, message });
    }
    let pools = view.step.selection.links.get(&link.ifindex).map_or(&[][..], |outcome| &outcome.pools);
    let mut modes = pools.iter().map(|index| view.engine.world.pools[*index].mode());
    if link.tag == Tag::LeftInPlace && modes.clone().any(|mode| mode == Mode::Bridge) {
        let message = format!(
            "pods of this node cannot reach one another through {name}, a VLAN without header reordering; `ip link set \
             {name} type vlan reorder_hdr on`"
        );
        return Some(Refusal { reason: LinkReason::HeadersNotReordered, message });
    }
    if link.hardware.is_virtual_function && modes.any(|mode| mode != Mode::Passthru) {
        let message = format!(
            "{name} is a virtual function, which may pass the frames of a few MAC addresses only; trust it (`ip link \
             set PF vf N trust on`) or limit the pool's capacity.perLink"
        );
        return Some(Refusal { reason: LinkReason::FewMacFilters, message });
    }
    None
}

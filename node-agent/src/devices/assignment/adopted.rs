//! The links of a resource from one table to the next.

use super::{Demand, Surroundings, nowhere};
use macvtap::table::{LinkIdentity, LowerLink};

/// The links a resource had and those it should have, each once, under its index of today.
pub(super) fn adopt(
    before: &[LowerLink],
    demand: Option<&Demand>,
    around: Surroundings<'_>,
    same_boot: bool,
) -> Vec<LowerLink> {
    let mut links: Vec<LowerLink> = before.to_vec();
    for link in &mut links {
        if !same_boot {
            // An index of another boot may be any link's today.
            link.ifindex = 0;
        }
        match around.links.get(link.ifindex) {
            Some(known) if may_become(&link.identity, &known.identity) => {
                link.name.clone_from(&known.name);
                link.identity.clone_from(&known.identity);
            }
            // The link is gone, and another one has its index.
            Some(_) => link.ifindex = 0,
            None => {}
        }
    }
    merge(&mut links, around);
    // First those that only changed their index, so that the demand below finds them under the new one.
    let is_lost = |link: &LowerLink| !around.links.has(link.ifindex);
    for (ifindex, known) in around.links.iter() {
        if !links.iter().any(is_lost) {
            break;
        }
        if links.iter().any(|link| link.ifindex == ifindex) {
            continue;
        }
        let mut lost_links = links.iter_mut().filter(|link| is_lost(link));
        if let Some(link) = lost_links.find(|link| link.identity == known.identity) {
            link.ifindex = ifindex;
            link.name.clone_from(&known.name);
        }
    }
    // Of a link that is in the table more than once, one entry has got the index of today.
    merge(&mut links, around);
    for wish in demand.map_or(&[][..], |demand| demand.links.as_slice()) {
        let known = around.links.get(wish.ifindex);
        if let (Some(known), Some(demand), false) =
            (known, demand, links.iter().any(|link| link.ifindex == wish.ifindex))
        {
            links.push(LowerLink {
                ifindex: wish.ifindex,
                name: known.name.clone(),
                identity: known.identity.clone(),
                mode: demand.mode,
                ranges: Vec::new(),
            });
        }
    }
    settle(&mut links, demand);
    links
}

/// Whether a link that was known as one thing can be known as another and still be the same. A link that moves into the
/// namespace brings its index along, so another one may have the index of one that was deleted.
fn may_become(before: &LinkIdentity, now: &LinkIdentity) -> bool {
    *before == nowhere()
        || match now {
            LinkIdentity::Hardware { parent, .. } => before.may_be(None, Some(parent)),
            LinkIdentity::Name { kind, .. } => {
                before.may_be(Some(&**kind).filter(|kind| !kind.is_empty()), None)
            }
        }
}

/// A table that was rebuilt has a link more than once: by its index of each record, which may be one that it had before it was
/// plugged in again, and by identity from what containers were passed.
fn merge(links: &mut Vec<LowerLink>, around: Surroundings<'_>) {
    let mut place = 0;
    while let Some(link) = links.get(place) {
        let is_same = |other: &LowerLink| other.ifindex != 0 && other.identity == link.identity;
        let present = links.iter().position(|other| is_same(other) && around.links.has(other.ifindex));
        let other = present.or_else(|| links.iter().position(is_same).filter(|_| link.ifindex == 0));
        let is_lost = !around.links.has(link.ifindex) && link.identity != nowhere();
        match other.filter(|_| is_lost) {
            Some(other) => {
                let ranges = std::mem::take(&mut links[place].ranges);
                links[other].ranges.extend(ranges);
                links.remove(place);
            }
            None => place += 1,
        }
    }
}

/// Devices whose link nobody has noted are on the resource's link, if it has one only.
fn settle(links: &mut Vec<LowerLink>, demand: Option<&Demand>) {
    let Some([only]) = demand.map(|demand| demand.links.as_slice()) else { return };
    let Some(place) = links.iter().position(|link| link.ifindex == 0 && link.identity == nowhere()) else {
        return;
    };
    let stray = links.remove(place);
    match links.iter_mut().find(|link| link.ifindex == only.ifindex) {
        Some(link) => link.ranges.extend(stray.ranges),
        None => links.push(stray),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Known, KnownLinks};
    use super::*;
    use macvtap::mode::Mode;
    use macvtap::table::SlotRange;
    use std::collections::BTreeSet;
    use std::time::Instant;

    fn identity(number: u8) -> LinkIdentity {
        LinkIdentity::Hardware {
            mac: [2, 0, 0, 0, 0, number].try_into().unwrap(),
            parent: "0000:00:0a.0".into(),
        }
    }

    fn lower(ifindex: u32, number: u8, first_slot: u32) -> LowerLink {
        LowerLink {
            ifindex,
            name: String::new(),
            identity: identity(number),
            mode: Mode::default(),
            ranges: vec![SlotRange { first_slot, count: 1, first_ifindex: 1000 + first_slot }],
        }
    }

    /// The indexes of links with the slots of each, after eth0 with index 7 and eth1 with index 12 were adopted.
    fn adopted(before: &[LowerLink]) -> Vec<(u32, Vec<u32>)> {
        let known = |name: &str, number| Known { name: name.into(), identity: identity(number), pci: None };
        let links: KnownLinks = [(7, known("eth0", 1)), (12, known("eth1", 2))].into_iter().collect();
        let in_use = BTreeSet::new();
        let around = Surroundings {
            boot_id: "b",
            links: &links,
            in_use: &in_use,
            standalone: false,
            now: Instant::now(),
        };
        let slots = |link: &LowerLink| link.ranges.iter().map(|range| range.first_slot).collect();
        adopt(before, None, around, true).iter().map(|link| (link.ifindex, slots(link))).collect()
    }

    #[test]
    fn a_link_that_is_known_by_its_identity_alone_is_found_under_whatever_index_it_has() {
        // The second one was unplugged when the table was rebuilt, and has another index since.
        let before = [lower(7, 1, 0), lower(0, 1, 1), lower(0, 2, 2), lower(9, 2, 3)];
        assert_eq!(adopted(&before), [(7, vec![0, 1]), (12, vec![3, 2])]);
    }

    #[test]
    fn another_link_with_the_index_of_one_that_is_gone_does_not_get_its_devices() {
        let made = |kind: &str, name: &str| LinkIdentity::Name { kind: kind.into(), name: name.into() };
        let on = |parent: &str| LinkIdentity::Hardware {
            mac: [2, 0, 0, 0, 0, 1].try_into().unwrap(),
            parent: parent.into(),
        };
        for before in [made("bond", "bond0"), made("veth", "eth0"), made("", "eth0"), on("0000:00:0b.0")] {
            let gone = LowerLink { identity: before.clone(), ..lower(7, 1, 0) };
            let expected = if before == made("", "eth0") { 7 } else { 0 };
            assert_eq!(adopted(&[gone]), [(expected, vec![0])], "{before:?}");
        }
        assert_eq!(adopted(&[LowerLink { ifindex: 12, ..lower(7, 1, 0) }]), [(12, vec![0])], "a new address");
        for (renamed, replaced) in
            [(made("bond", "b"), made("vlan", "bond0")), (on("0000:00:0a.0"), made("veth", "b"))]
        {
            assert!(may_become(&renamed, &renamed) && !may_become(&renamed, &replaced), "{renamed:?}");
        }
        assert!(may_become(&made("bond", "bond0"), &made("bond", "renamed")));
    }

    #[test]
    fn records_from_before_and_after_a_link_was_plugged_in_again_are_of_one_link() {
        for before in [
            [lower(9, 2, 3), lower(12, 2, 4), lower(0, 2, 5), lower(7, 1, 0)],
            [lower(7, 1, 0), lower(0, 2, 5), lower(12, 2, 4), lower(9, 2, 3)],
        ] {
            let mut found = adopted(&before);
            for (_, slots) in &mut found {
                slots.sort_unstable();
            }
            found.sort_unstable();
            assert_eq!(found, [(7, vec![0]), (12, vec![3, 4, 5])]);
        }
    }

    #[test]
    fn a_link_that_was_plugged_in_again_twice_is_one_at_once() {
        let before = [lower(9, 1, 0), lower(8, 1, 1), lower(0, 1, 2)];
        assert_eq!(adopted(&before), [(7, vec![0, 2, 1])]);
    }
}

//! A device table from what pods have, for the day the table is damaged or lost.

use crate::checkpoint::{self, Given};
use crate::devices;
use macvtap::mode::Mode;
use macvtap::paths::Paths;
use macvtap::record::Attachment;
use macvtap::records;
use macvtap::table::{
    DeviceTable, DeviceType, IFINDEX_FIRST, IFINDEX_LAST, LowerLink, Owner, Resource, SlotRange, TapOnly,
};

use std::collections::BTreeSet;
use std::path::Path;

/// Indexes of the lost table that no record names may belong to pods whose networks are being set up right now. This
/// many are left out above the highest one known.
const GAP: u32 = 1 << 16;

/// Every recorded device with its index, then every one the kubelet has given away; everything else is given anew.
/// Which link the latter were on nobody has noted: the resource's, if it has one only.
pub fn rebuild(paths: &Paths, plugins: &Path, boot_id: &str, standalone: bool) -> DeviceTable {
    let records = records::list(paths).map(|listing| listing.records).unwrap_or_default();
    from_notes(&records, &checkpoint::given(plugins), boot_id, standalone)
}

fn from_notes(records: &[Attachment], given: &[Given], boot_id: &str, standalone: bool) -> DeviceTable {
    let mut table = devices::empty(boot_id, standalone);
    let mut highest = IFINDEX_FIRST;
    let mut indexes = BTreeSet::new();
    let recorded = records.iter().map(|record| (&record.device, record.ifindex, record.lower_ifindex));
    let promised = given.iter().filter_map(|given| Some((&given.device, given.ifindex?, 0)));
    for (device, ifindex, lower_ifindex) in recorded.chain(promised) {
        let ours = (IFINDEX_FIRST..=IFINDEX_LAST).contains(&ifindex);
        if !ours || table.device(device).is_some() || !indexes.insert(ifindex) {
            continue;
        }
        highest = highest.max(ifindex);
        let resource = table.resources.entry(device.resource().clone()).or_insert_with(unknown);
        let range = SlotRange { first_slot: device.slot(), count: 1, first_ifindex: ifindex };
        match resource.links.iter_mut().find(|link| link.ifindex == lower_ifindex) {
            Some(link) => link.ranges.push(range),
            None => resource.links.push(LowerLink {
                ifindex: lower_ifindex,
                name: String::new(),
                identity: devices::nowhere(),
                mode: Mode::default(),
                ranges: vec![range],
            }),
        }
    }
    table.next_ifindex = highest.saturating_add(GAP).min(IFINDEX_LAST);
    table
}

/// What stands in the table until a pool says better.
fn unknown() -> Resource {
    Resource {
        prefix: macvtap_crds::GROUP.to_owned(),
        device_type: DeviceType::Macvtap,
        mtu: None,
        promiscuous: false,
        all_multicast: true,
        owner: Owner::default(),
        tap_only: TapOnly::Forbidden,
        links: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use macvtap::record::{Holder, State, VERSION};

    fn record(device: &str, ifindex: u32, lower_ifindex: u32) -> Attachment {
        Attachment {
            version: VERSION,
            device: device.parse().unwrap(),
            holder: Holder::Host,
            state: State::Attached,
            ifindex,
            lower_ifindex,
            mac: None,
            tap: None,
            netns_id: None,
            network: None,
        }
    }

    #[test]
    fn recorded_devices_keep_their_indexes_and_no_index_near_them_is_given_anew() {
        let records = [
            record("aMvp3", IFINDEX_FIRST + 3, 7),
            record("aMvp0", IFINDEX_FIRST, 7),
            record("bMvp0", IFINDEX_FIRST + 50, 8),
            record("bMvp1", 12, 8),
        ];
        let given = [
            Given { device: "aMvp3".parse().unwrap(), ifindex: Some(IFINDEX_FIRST + 9) },
            Given { device: "aMvp5".parse().unwrap(), ifindex: Some(IFINDEX_FIRST + 5) },
            Given { device: "aMvp6".parse().unwrap(), ifindex: Some(IFINDEX_FIRST + 50) },
            Given { device: "aMvp7".parse().unwrap(), ifindex: None },
        ];
        let table = from_notes(&records, &given, "boot", false);
        let promised = table.device(&"aMvp5".parse().unwrap()).unwrap();
        assert_eq!((promised.ifindex, promised.link.ifindex), (IFINDEX_FIRST + 5, 0));
        assert!(table.device(&"aMvp6".parse().unwrap()).is_none(), "that index is another device's");
        let found = table.device(&"aMvp3".parse().unwrap()).unwrap();
        assert_eq!((found.ifindex, found.link.ifindex), (IFINDEX_FIRST + 3, 7));
        assert!(table.device(&"bMvp1".parse().unwrap()).is_none());
        assert_eq!(table.next_ifindex, IFINDEX_FIRST + 50 + GAP);
        DeviceTable::parse(&serde_json::to_vec(&table).unwrap()).unwrap();
    }
}

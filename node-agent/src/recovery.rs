//! A device table from what pods have, for the day the table is damaged or lost.

use crate::checkpoint::{self, Given};
use crate::devices;
use macvtap::device_id::DeviceId;
use macvtap::mode::Mode;
use macvtap::paths::Paths;
use macvtap::record::Attachment;
use macvtap::records;
use macvtap::table::{
    DeviceTable, DeviceType, IFINDEX_FIRST, IFINDEX_LAST, LowerLink, Owner, Resource, SlotRange, TapOnly,
};
use std::collections::{BTreeMap, BTreeSet};
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
    let mut add = |device: &DeviceId, ifindex: u32, lower_ifindex: u32| {
        let ours = (IFINDEX_FIRST..=IFINDEX_LAST).contains(&ifindex);
        if !ours || table.device(device).is_some() || !indexes.insert(ifindex) {
            return;
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
                pci: None,
            }),
        }
    };
    for record in records {
        add(&record.device, record.ifindex, record.lower_ifindex);
    }
    let known: BTreeMap<&DeviceId, u32> =
        records.iter().map(|record| (&record.device, record.ifindex)).collect();
    for given in given {
        let devices: Vec<_> = given.devices.iter().filter(|device| !known.contains_key(device)).collect();
        let promised =
            given.ifindexes.iter().filter(|ifindex| !known.values().any(|known| known == *ifindex));
        let promised: Vec<_> = promised.collect();
        if devices.len() == promised.len() {
            for (device, ifindex) in devices.into_iter().zip(promised) {
                add(device, *ifindex, 0);
            }
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
            nic: None,
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
        let given = |ids: &[&str], ifindexes: &[u32]| Given {
            devices: ids.iter().map(|id| id.parse().unwrap()).collect(),
            ifindexes: ifindexes.iter().map(|index| IFINDEX_FIRST + index).collect(),
        };
        let given = [
            given(&["aMvp3"], &[9]),
            given(&["aMvp5"], &[5]),
            given(&["aMvp6"], &[50]),
            given(&["aMvp7"], &[]),
            // One of a container's three is recorded: the other two have what is left.
            given(&["aMvp0", "aMvp11", "aMvp12"], &[0, 21, 22]),
        ];
        let table = from_notes(&records, &given, "boot", false);
        let promised = table.device(&"aMvp5".parse().unwrap()).unwrap();
        assert_eq!((promised.ifindex, promised.link.ifindex), (IFINDEX_FIRST + 5, 0));
        assert!(table.device(&"aMvp6".parse().unwrap()).is_none(), "that index is another device's");
        for (device, index) in [("aMvp0", 0), ("aMvp11", 21), ("aMvp12", 22)] {
            let found = table.device(&device.parse().unwrap()).unwrap();
            assert_eq!(found.ifindex, IFINDEX_FIRST + index, "{device}");
        }
        assert!(table.device(&"aMvp7".parse().unwrap()).is_none());
        let found = table.device(&"aMvp3".parse().unwrap()).unwrap();
        assert_eq!((found.ifindex, found.link.ifindex), (IFINDEX_FIRST + 3, 7));
        assert!(table.device(&"bMvp1".parse().unwrap()).is_none());
        assert_eq!(table.next_ifindex, IFINDEX_FIRST + 50 + GAP);
        DeviceTable::parse(&serde_json::to_vec(&table).unwrap()).unwrap();
    }
}

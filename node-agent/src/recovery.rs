//! A device table from what pods have, for the day the table is damaged or lost.

use crate::devices;
use macvtap::mode::Mode;
use macvtap::paths::Paths;
use macvtap::record::Attachment;
use macvtap::records;
use macvtap::table::{
    DeviceTable, DeviceType, IFINDEX_FIRST, IFINDEX_LAST, LinkIdentity, LowerLink, Owner, Resource,
    SlotRange, TapOnly,
};

/// Indexes of the lost table that no record names may belong to pods whose networks are being set up right now. This
/// many are left out above the highest one known.
const GAP: u32 = 1 << 16;

/// Every recorded device with its index; everything else is given anew.
pub fn rebuild(paths: &Paths, boot_id: &str, standalone: bool) -> DeviceTable {
    let records = records::list(paths).map(|listing| listing.records).unwrap_or_default();
    from_records(&records, boot_id, standalone)
}

fn from_records(records: &[Attachment], boot_id: &str, standalone: bool) -> DeviceTable {
    let mut table = devices::empty(boot_id, standalone);
    let mut highest = IFINDEX_FIRST;
    for record in records {
        if !(IFINDEX_FIRST..=IFINDEX_LAST).contains(&record.ifindex) {
            continue;
        }
        highest = highest.max(record.ifindex);
        let resource = table.resources.entry(record.device.resource().clone()).or_insert_with(unknown);
        let range = SlotRange { first_slot: record.device.slot(), count: 1, first_ifindex: record.ifindex };
        match resource.links.iter_mut().find(|link| link.ifindex == record.lower_ifindex) {
            Some(link) => link.ranges.push(range),
            None => resource.links.push(LowerLink {
                ifindex: record.lower_ifindex,
                name: String::new(),
                identity: LinkIdentity::Name { kind: String::new(), name: String::new() },
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
        let table = from_records(&records, "boot", false);
        let found = table.device(&"aMvp3".parse().unwrap()).unwrap();
        assert_eq!((found.ifindex, found.link.ifindex), (IFINDEX_FIRST + 3, 7));
        assert!(table.device(&"bMvp1".parse().unwrap()).is_none());
        assert_eq!(table.next_ifindex, IFINDEX_FIRST + 50 + GAP);
        DeviceTable::parse(&serde_json::to_vec(&table).unwrap()).unwrap();
    }
}

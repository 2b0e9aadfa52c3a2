//! A device table from what pods have, for the day the table is damaged or lost.

use crate::devices::assignment;
use crate::kubelet::checkpoint::{self, Given};
use macvtap::device_id::{DeviceId, DeviceIdError, ResourceName, SLOT_MAX};
use macvtap::mode::Mode;
use macvtap::paths::Paths;
use macvtap::record::Attachment;
use macvtap::records::{self, RecordError};
use macvtap::table::{
    DeviceTable, DeviceType, Devices, IFINDEX_FIRST, IFINDEX_LAST, LinkIdentity, LowerLink, Owner, Resource,
    SlotRange, TapOnly, WholeNic,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Indexes of the lost table that no record names may belong to pods whose networks are being set up right now. This
/// many are left out above the highest one known.
const GAP: u32 = 1 << 16;

/// Every recorded device with its index, then every one the kubelet has given away; everything else is assigned again.
/// Which link the latter are on is noted in what their containers were passed. Of an allocation by an earlier release nobody
/// knows: it is the resource's, if it has one only.
pub(super) fn rebuild(
    paths: &Paths,
    plugins: &Path,
    boot_id: &str,
    standalone: bool,
) -> Result<DeviceTable, RecordError> {
    let records = records::list(paths)?.records;
    Ok(from_notes(&records, &checkpoint::given(plugins), boot_id, standalone))
}

fn from_notes(records: &[Attachment], given: &[Given], boot_id: &str, standalone: bool) -> DeviceTable {
    let mut table = assignment::empty(boot_id, standalone);
    let mut highest = IFINDEX_FIRST;
    let mut indexes = BTreeSet::new();
    let noted: BTreeMap<u32, &LinkIdentity> =
        given.iter().flat_map(|given| &given.lower).map(|(ifindex, lower)| (*ifindex, lower)).collect();
    let mut add = |device: &DeviceId, ifindex: u32, lower_ifindex: u32| {
        let ours = (IFINDEX_FIRST..=IFINDEX_LAST).contains(&ifindex);
        if !ours || table.device(device).is_some() || !indexes.insert(ifindex) {
            return;
        }
        highest = highest.max(ifindex);
        let resource = table.resources.entry(device.resource().clone());
        let resource = resource.or_insert_with(|| unknown(DeviceType::Macvtap));
        let Devices::Macvtaps(links) = &mut resource.devices else { return };
        let range = SlotRange { first_slot: device.slot(), count: 1, first_ifindex: ifindex };
        let identity = noted.get(&ifindex).map_or_else(assignment::nowhere, |identity| (*identity).clone());
        let is_same = |link: &&mut LowerLink| {
            link.ifindex == lower_ifindex && (lower_ifindex != 0 || link.identity == identity)
        };
        match links.iter_mut().find(is_same) {
            Some(link) => {
                link.ranges.push(range);
                // Another device of the link may have none noted.
                if link.identity == assignment::nowhere() {
                    link.identity = identity;
                }
            }
            None => links.push(LowerLink {
                ifindex: lower_ifindex,
                name: String::new(),
                identity,
                mode: Mode::default(),
                ranges: vec![range],
            }),
        }
    };
    for record in records.iter().filter(|record| record.nic.is_none()) {
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
    table.next_ifindex = highest.saturating_add(1);
    for record in records {
        if let Some(nic) = &record.nic {
            let nic = WholeNic {
                address: nic.pci,
                number: record.device.slot(),
                ifindex: record.lower_ifindex,
                name: nic.name.clone(),
                identity: nic.identity.clone(),
            };
            add_nic(&mut table, record.device.resource(), nic);
        }
    }
    for given in given {
        let Ok((prefix, name)) = split(&given.resource) else { continue };
        for address in &given.nics {
            let taken = table.resources.get(&name).map_or(&[][..], Resource::nics);
            let highest = taken.iter().map(|nic| nic.number).max();
            let number = highest.map_or(0, |number| number.saturating_add(1));
            // Where it is on the node, nobody has noted.
            let identity = assignment::nowhere();
            let nic = WholeNic { address: *address, number, ifindex: 0, name: String::new(), identity };
            add_nic(&mut table, &name, nic);
            // By its whole name the kubelet knows the NIC.
            if let Some(resource) = table.resources.get_mut(&name) {
                prefix.clone_into(&mut resource.prefix);
            }
        }
    }
    table.next_ifindex = table.next_ifindex.saturating_add(GAP).min(IFINDEX_LAST + 1);
    table
}

fn add_nic(table: &mut DeviceTable, resource: &ResourceName, nic: WholeNic) {
    if table.nic(nic.address).is_some() || nic.number > SLOT_MAX {
        return;
    }
    let entry = table.resources.entry(resource.clone());
    if let Devices::Nics(nics) = &mut entry.or_insert_with(|| unknown(DeviceType::HostDevice)).devices
        && nics.iter().all(|other| other.number != nic.number)
    {
        nics.push(nic);
    }
}

/// Prefix and name of a resource.
fn split(resource: &str) -> Result<(&str, ResourceName), DeviceIdError> {
    let (prefix, name) = resource.rsplit_once('/').unwrap_or(("", resource));
    Ok((prefix, name.parse()?))
}

/// What stands in the table until a pool says better.
fn unknown(device_type: DeviceType) -> Resource {
    Resource {
        pool: None,
        prefix: macvtap_crds::GROUP.to_owned(),
        mtu: None,
        promiscuous: false,
        all_multicast: true,
        owner: Owner::default(),
        tap_only: TapOnly::Forbidden,
        devices: Devices::none(device_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::collector::tests::recorded;
    use crate::devices::nics;
    use crate::links::inventory::tests::nic;

    fn record(device: &str, ifindex: u32, lower_ifindex: u32) -> Attachment {
        Attachment { ifindex, lower_ifindex, ..recorded(device) }
    }

    #[test]
    fn records_that_cannot_be_listed_are_not_taken_for_none() {
        let (run, plugins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = macvtap::paths::Paths::new(run.path(), run.path());
        let rebuilt = || rebuild(&paths, plugins.path(), "boot", false);
        assert!(rebuilt().unwrap().resources.is_empty(), "nothing was ever attached");
        std::fs::create_dir_all(paths.attachments().parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(paths.attachments(), paths.attachments()).unwrap();
        assert!(matches!(rebuilt(), Err(RecordError::File(_))));
    }

    #[test]
    fn nics_in_pods_keep_their_numbers_and_allocated_ones_are_known_by_their_address() {
        let nic = Some(nics::tests::recorded(&nic(7, "eth1", 0xa)));
        let first = Attachment { nic: nic.clone(), ..record("virtMvp3", 2, 7) };
        let twice = Attachment { nic, ..record("virtMvp4", 2, 7) };
        let given = [Given {
            pod_uid: String::new(),
            lower: BTreeMap::new(),
            resource: "kernel.org/virt".into(),
            devices: Vec::new(),
            nics: ["0000:00:0a.0", "0000:00:0b.0"].map(|address| address.parse().unwrap()).into(),
            ifindexes: Vec::new(),
        }];
        let tap = record("aMvp0", IFINDEX_FIRST + 5, 7);
        let table = from_notes(&[first, twice, tap], &given, "boot", false);
        let found = |address: &str| table.nic(address.parse().unwrap()).unwrap();
        let (device, known) = found("0000:00:0a.0");
        assert_eq!((device.to_string().as_str(), known.nic.ifindex), ("virtMvp3", 7));
        assert_eq!(known.resource.prefix, "kernel.org");
        assert_eq!(found("0000:00:0b.0").0.to_string(), "virtMvp4");
        DeviceTable::parse(&serde_json::to_vec(&table).unwrap()).unwrap();
    }

    #[test]
    fn the_link_of_a_device_is_known_from_what_its_container_was_told() {
        let dp = |name: &str| LinkIdentity::Name { kind: "bond".into(), name: name.into() };
        let given = |ids: &[&str], noted: &[(u32, &str)]| Given {
            pod_uid: String::new(),
            lower: noted.iter().map(|(index, name)| (IFINDEX_FIRST + index, dp(name))).collect(),
            resource: "example.com/a".into(),
            nics: Vec::new(),
            devices: ids.iter().map(|id| id.parse().unwrap()).collect(),
            ifindexes: noted.iter().map(|(index, _)| IFINDEX_FIRST + index).collect(),
        };
        let given = [given(&["aMvp0"], &[(0, "dp0")]), given(&["aMvp1", "aMvp2"], &[(1, "dp1"), (2, "dp0")])];
        // The link of a record may be gone by now, and come back with another index.
        let table = from_notes(&[record("aMvp1", IFINDEX_FIRST + 1, 7)], &given, "boot", false);
        let identity = |device: &str| table.macvtap(&device.parse().unwrap()).unwrap().link.identity.clone();
        assert_eq!(identity("aMvp0"), dp("dp0"));
        assert_eq!(identity("aMvp1"), dp("dp1"));
        assert_eq!(identity("aMvp2"), dp("dp0"));
    }

    #[test]
    fn devices_of_one_link_are_on_one_link_of_the_table() {
        let dp = |name: &str| LinkIdentity::Name { kind: "bond".into(), name: name.into() };
        let noted = [(1, "dp1"), (3, "dp0"), (4, "dp0"), (5, "dp2")];
        let given = Given {
            pod_uid: String::new(),
            lower: noted.iter().map(|(index, name)| (IFINDEX_FIRST + index, dp(name))).collect(),
            resource: "example.com/a".into(),
            nics: Vec::new(),
            devices: ["aMvp3", "aMvp4", "aMvp5"].map(|id| id.parse().unwrap()).into(),
            ifindexes: [3, 4, 5].map(|index| IFINDEX_FIRST + index).into(),
        };
        let records = [record("aMvp0", IFINDEX_FIRST, 7), record("aMvp1", IFINDEX_FIRST + 1, 7)];
        let table = from_notes(&records, &[given], "boot", false);
        let links = table.resources[&"a".parse().unwrap()].links().iter();
        let links = links.map(|link| (link.ifindex, link.identity.clone(), link.ranges.len()));
        let expected = [(7, dp("dp1"), 2), (0, dp("dp0"), 2), (0, dp("dp2"), 1)];
        assert_eq!(links.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn no_device_and_no_index_is_in_the_table_twice() {
        let records = [
            record("aMvp0", IFINDEX_FIRST, 7),
            record("aMvp0", IFINDEX_FIRST + 1, 7),
            record("aMvp2", IFINDEX_FIRST, 7),
            record("aMvp3", IFINDEX_FIRST + 3, 7),
        ];
        let table = from_notes(&records, &[], "boot", false);
        let index = |device: &str| table.macvtap(&device.parse().unwrap()).map(|found| found.ifindex);
        assert_eq!(["aMvp0", "aMvp2"].map(index), [Some(IFINDEX_FIRST), None]);
        assert_eq!(index("aMvp3"), Some(IFINDEX_FIRST + 3));
    }

    #[test]
    fn a_nic_for_which_no_number_is_left_is_not_in_the_table() {
        let last = Some(nics::tests::recorded(&nic(7, "eth1", 0xa)));
        let last = Attachment { nic: last, ..record(&format!("virtMvp{SLOT_MAX}"), 2, 7) };
        let given = Given {
            pod_uid: String::new(),
            lower: BTreeMap::new(),
            resource: "kernel.org/virt".into(),
            devices: Vec::new(),
            nics: vec!["0000:00:0b.0".parse().unwrap()],
            ifindexes: Vec::new(),
        };
        let table = from_notes(&[last], &[given], "boot", false);
        let numbers = table.nics().map(|(_, found)| found.nic.number);
        assert_eq!(numbers.collect::<Vec<_>>(), [SLOT_MAX]);
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
            pod_uid: String::new(),
            lower: BTreeMap::new(),
            resource: "example.com/a".into(),
            nics: Vec::new(),
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
        let promised = table.macvtap(&"aMvp5".parse().unwrap()).unwrap();
        assert_eq!((promised.ifindex, promised.link.ifindex), (IFINDEX_FIRST + 5, 0));
        assert!(table.macvtap(&"aMvp6".parse().unwrap()).is_none(), "that index is another device's");
        for (device, index) in [("aMvp0", 0), ("aMvp11", 21), ("aMvp12", 22)] {
            let found = table.macvtap(&device.parse().unwrap()).unwrap();
            assert_eq!(found.ifindex, IFINDEX_FIRST + index, "{device}");
        }
        assert!(table.macvtap(&"aMvp7".parse().unwrap()).is_none());
        let found = table.macvtap(&"aMvp3".parse().unwrap()).unwrap();
        assert_eq!((found.ifindex, found.link.ifindex), (IFINDEX_FIRST + 3, 7));
        assert!(table.macvtap(&"bMvp1".parse().unwrap()).is_none());
        assert_eq!(table.next_ifindex, IFINDEX_FIRST + 51 + 65_536);
        DeviceTable::parse(&serde_json::to_vec(&table).unwrap()).unwrap();
    }
}

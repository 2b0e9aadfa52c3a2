use super::*;
use proptest::prelude::*;

fn table(ranges: &[(u32, u32, u32)]) -> Vec<u8> {
    let ranges = ranges
        .iter()
        .map(|&(first_slot, count, first_ifindex)| SlotRange { first_slot, count, first_ifindex })
        .collect();
    let link = LowerLink {
        ifindex: 3,
        name: "dp0".into(),
        identity: LinkIdentity::Name { kind: "veth".into(), name: "dp0".into() },
        mode: Mode::Bridge,
        ranges,
    };
    let resource = Resource {
        pool: None,
        prefix: "macvtap.network.kubevirt.io".into(),
        mtu: None,
        promiscuous: false,
        all_multicast: true,
        owner: Owner::default(),
        tap_only: TapOnly::Forbidden,
        devices: Devices::Macvtaps(vec![link]),
    };
    let resources = BTreeMap::from([("dataplane".parse().unwrap(), resource)]);
    let table = DeviceTable {
        version: VERSION,
        boot_id: "b".into(),
        next_ifindex: IFINDEX_FIRST,
        standalone: false,
        resources,
        left_out: BTreeMap::new(),
    };
    serde_json::to_vec(&table).unwrap()
}

#[test]
fn a_slot_keeps_its_index_when_ranges_are_added() {
    let table = DeviceTable::parse(&table(&[(0, 2, IFINDEX_FIRST), (2, 3, IFINDEX_FIRST + 100)])).unwrap();
    let index = |slot: u32| table.macvtap(&format!("dataplaneMvp{slot}").parse().unwrap()).map(|d| d.ifindex);
    assert_eq!(index(1), Some(IFINDEX_FIRST + 1));
    assert_eq!(index(2), Some(IFINDEX_FIRST + 100));
    assert_eq!(index(5), None);
    assert!(table.macvtap(&"otherMvp0".parse().unwrap()).is_none());
}

#[test]
fn a_table_that_contradicts_itself_is_refused() {
    for (why, ranges) in [
        ("same slot", vec![(0, 2, IFINDEX_FIRST), (1, 1, IFINDEX_FIRST + 9)]),
        ("same index", vec![(0, 2, IFINDEX_FIRST), (2, 1, IFINDEX_FIRST + 1)]),
        ("empty range", vec![(0, 0, IFINDEX_FIRST)]),
        ("index of another", vec![(0, 1, 3)]),
        ("index of a placeholder", vec![(0, 2, IFINDEX_LAST)]),
        ("overflow", vec![(u32::MAX, 2, IFINDEX_FIRST)]),
    ] {
        assert!(matches!(DeviceTable::parse(&table(&ranges)), Err(TableError::Inconsistent { .. })), "{why}");
    }
}

/// Two NICs as they are written, each with these slots and at this address.
fn nics(described: [(&[u32], Option<&str>); 2]) -> Vec<u8> {
    let mut table: Value = serde_json::from_slice(&table(&[])).unwrap();
    let resource = &mut table["resources"]["dataplane"];
    resource["type"] = "HostDevice".into();
    let template = resource["links"][0].clone();
    let links = described.iter().map(|(slots, pci)| {
        let mut link = template.clone();
        let range = |slot: &u32| {
            let range = SlotRange { first_slot: *slot, count: 1, first_ifindex: IFINDEX_FIRST + slot };
            serde_json::to_value(range).unwrap()
        };
        link["ranges"] = slots.iter().map(range).collect();
        if let Some(pci) = pci {
            link["pci"] = (*pci).into();
        }
        link
    });
    resource["links"] = links.collect();
    serde_json::to_vec(&table).unwrap()
}

#[test]
fn a_whole_nic_is_found_by_its_address_and_its_number() {
    let (a, b) = (Some("0000:00:0a.0"), Some("0000:00:0b.0"));
    let table = DeviceTable::parse(&nics([(&[4], a), (&[7], b)])).unwrap();
    let (id, found) = table.nic("0000:00:0b.0".parse().unwrap()).unwrap();
    assert_eq!((id.to_string().as_str(), found.nic.number), ("dataplaneMvp7", 7));
    assert!(matches!(table.device(&id), Some(Device::Nic(same)) if same.nic == found.nic));
    assert!(table.macvtap(&id).is_none());
    assert!(table.nic("0000:00:0c.0".parse().unwrap()).is_none());
    for (why, described) in [
        ("no address", [(&[4][..], a), (&[7][..], None)]),
        ("two slots", [(&[4, 5], a), (&[7], b)]),
        ("no slot", [(&[4], a), (&[], b)]),
        ("the same address", [(&[4], a), (&[7], a)]),
    ] {
        let parsed = DeviceTable::parse(&nics(described));
        assert!(matches!(parsed, Err(TableError::Inconsistent { .. })), "{why}");
    }
}

#[test]
fn whole_nics_are_written_as_the_first_release_reads_them() {
    let (a, b) = (Some("0000:00:0a.0"), Some("0000:00:0b.0"));
    let mut table = DeviceTable::parse(&nics([(&[4], a), (&[7], b)])).unwrap();
    let shared = DeviceTable::parse(&self::table(&[(0, 2, IFINDEX_FIRST + 20)])).unwrap();
    table.resources.insert("shared".parse().unwrap(), shared.resources.values().next().unwrap().clone());
    table.next_ifindex = IFINDEX_FIRST + 22;
    let written = serde_json::to_vec(&table).unwrap();
    let document: Value = serde_json::from_slice(&written).unwrap();
    let links = &document["resources"]["dataplane"]["links"];
    for (place, (address, number)) in [("0000:00:0a.0", 4), ("0000:00:0b.0", 7)].into_iter().enumerate() {
        let index = IFINDEX_FIRST + 22 + u32::try_from(place).unwrap();
        assert_eq!(links[place]["pci"], address);
        assert_eq!(links[place]["mode"], "passthru");
        let range = serde_json::json!([{"firstSlot": number, "count": 1, "firstIfindex": index}]);
        assert_eq!(links[place]["ranges"], range, "no two devices have one index");
    }
    assert_eq!(document["nextIfindex"], IFINDEX_FIRST + 24, "the first release would give a macvtap a NIC's");
    assert_eq!(DeviceTable::parse(&written).unwrap(), table);
}

#[test]
fn whole_nics_are_written_in_numbers_of_ours_when_the_next_ones_are_used_up() {
    let mut table =
        DeviceTable::parse(&nics([(&[4], Some("0000:00:0a.0")), (&[7], Some("0000:00:0b.0"))])).unwrap();
    let ranges = [(0, 2, IFINDEX_FIRST), (2, 1, IFINDEX_FIRST + 3), (3, 1, IFINDEX_LAST - 1)];
    let shared = DeviceTable::parse(&self::table(&ranges)).unwrap();
    table.resources.insert("shared".parse().unwrap(), shared.resources.values().next().unwrap().clone());
    let (last, low) = (IFINDEX_LAST, IFINDEX_FIRST + 2);
    for (next, expected) in [
        (last, [last, low]),
        (last + 1, [low, low + 2]),
        (0x7fff_ffff, [low, low + 2]),
        (u32::MAX, [low, low + 2]),
    ] {
        table.next_ifindex = next;
        let written = serde_json::to_vec(&table).unwrap();
        let document: Value = serde_json::from_slice(&written).unwrap();
        let links = &document["resources"]["dataplane"]["links"];
        assert_eq!([0, 1].map(|place| links[place]["ranges"][0]["firstIfindex"].clone()), expected);
        assert_eq!(DeviceTable::parse(&written).unwrap(), table, "{next}");
    }
}

#[test]
fn the_lower_link_of_macvtaps_is_no_whole_nic() {
    let mut written: Value = serde_json::from_slice(&table(&[(0, 1, IFINDEX_FIRST)])).unwrap();
    written["resources"]["dataplane"]["links"][0]["pci"] = "0000:00:0a.0".into();
    let table = DeviceTable::parse(written.to_string().as_bytes()).unwrap();
    assert!(table.nic("0000:00:0a.0".parse().unwrap()).is_none());
}

proptest! {
    #[test]
    fn no_table_makes_the_reader_panic_and_none_it_accepts_gives_two_devices_one_index(
        ranges in prop::collection::vec((0..40_u32, 0..20_u32, 0..60_u32), 0..6),
        at in 0..600_usize, value: u8,
    ) {
        let ranges: Vec<_> = ranges.into_iter().map(|(slot, count, index)| (slot, count, IFINDEX_FIRST + index)).collect();
        let mut json = table(&ranges);
        if let Ok(table) = DeviceTable::parse(&json) {
            let index = |slot| table.macvtap(&format!("dataplaneMvp{slot}").parse().unwrap()).map(|d| d.ifindex);
            let all: Vec<_> = (0..100).filter_map(index).collect();
            let distinct: std::collections::HashSet<_> = all.iter().collect();
            prop_assert_eq!(all.len(), distinct.len());
        }
        if let Some(byte) = json.get_mut(at) { *byte = value; }
        let _ = DeviceTable::parse(&json);
    }
}

#[test]
fn a_table_of_another_version_is_refused_with_the_version() {
    let json = String::from_utf8(table(&[])).unwrap().replace("\"version\":1", "\"version\":2");
    assert!(matches!(DeviceTable::parse(json.as_bytes()), Err(TableError::Version(2))));
}

#[test]
fn what_a_later_release_adds_is_passed_over() {
    let json = table(&[(0, 2, IFINDEX_FIRST)]);
    let known = DeviceTable::parse(&json).unwrap();
    let mut later: serde_json::Value = serde_json::from_slice(&json).unwrap();
    later["added"] = "x".into();
    later["resources"]["dataplane"]["added"] = "x".into();
    later["resources"]["dataplane"]["links"][0]["added"] = "x".into();
    later["resources"]["dataplane"]["links"][0]["ranges"][0]["added"] = "x".into();
    assert_eq!(DeviceTable::parse(later.to_string().as_bytes()).unwrap(), known);
}

#[test]
fn a_value_of_a_later_release_costs_its_own_entry_only() {
    let json = table(&[(0, 2, IFINDEX_FIRST)]);
    let known = DeviceTable::parse(&json).unwrap();
    let later = |pointers: &[(&str, &str)]| {
        let mut later: Value = serde_json::from_slice(&json).unwrap();
        let resource = later["resources"]["dataplane"].clone();
        later["resources"]["other"] = resource.clone();
        let link = resource["links"][0].clone();
        later["resources"]["other"]["links"].as_array_mut().unwrap().push(link);
        later["resources"]["other"]["links"][0]["ranges"][0]["firstIfindex"] = (IFINDEX_FIRST + 10).into();
        later["resources"]["other"]["links"][1]["ranges"][0]["firstIfindex"] = (IFINDEX_FIRST + 20).into();
        later["resources"]["other"]["links"][1]["ranges"][0]["firstSlot"] = 2.into();
        for (pointer, value) in pointers {
            *later.pointer_mut(pointer).unwrap() = (*value).into();
        }
        later.to_string()
    };
    assert!(DeviceTable::parse(later(&[]).as_bytes()).is_ok());
    let index =
        |table: &DeviceTable, id: &str| table.macvtap(&id.parse().unwrap()).map(|device| device.ifindex);
    for (pointer, value) in [
        ("/resources/other/type", "Queue"),
        ("/resources/other/tapOnly", "Perhaps"),
        ("/resources/other/links/0/mode", "hyper"),
        ("/resources/other/links/0/identity/by", "address"),
    ] {
        let json = later(&[(pointer, value)]);
        assert!(matches!(DeviceTable::parse(json.as_bytes()), Err(TableError::Json(_))), "{pointer}");
        let table = DeviceTable::parse_known(json.as_bytes()).unwrap();
        assert_eq!(index(&table, "dataplaneMvp1"), Some(IFINDEX_FIRST + 1), "{pointer}");
        assert_eq!(
            table.resources[&"dataplane".parse().unwrap()],
            known.resources.values().next().unwrap().clone()
        );
        assert_eq!(index(&table, "otherMvp0"), None, "{pointer}");
        let by_link = pointer.contains("links").then_some(IFINDEX_FIRST + 20);
        assert_eq!(index(&table, "otherMvp2"), by_link, "{pointer}: the resource's other link");
        let reasons: Vec<_> = table.left_out.iter().map(|(name, why)| (name.to_string(), why)).collect();
        assert!(
            matches!(&reasons[..], [(name, why)] if name == "other" && why.contains(value)),
            "{reasons:?}"
        );
    }
    let odd = later(&[("/resources/other/type", "Queue")]).replace("\"version\":1", "\"version\":2");
    assert!(matches!(DeviceTable::parse_known(odd.as_bytes()), Err(TableError::Version(2))));
    assert!(matches!(DeviceTable::parse_known(b"{"), Err(TableError::Json(_))));
}

#[test]
fn a_resource_that_names_no_pool_is_read_and_written_as_it_always_was() {
    let without = table(&[(0, 2, IFINDEX_FIRST)]);
    assert!(!String::from_utf8(without.clone()).unwrap().contains("pool"));
    let mut known = DeviceTable::parse(&without).unwrap();
    for resource in known.resources.values_mut() {
        resource.pool = Some("fabric".into());
    }
    assert_eq!(DeviceTable::parse(&serde_json::to_vec(&known).unwrap()).unwrap(), known);
}

//! The readers, each with what must be true of what it reads.

use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::paths::Paths;
use macvtap::records;
use macvtap::table::{DeviceTable, IFINDEX_FIRST, VERSION};
use macvtap::tap_pods;
use macvtap_crds::v1alpha1::MacvtapNodeStateSpec;
use macvtap_node_agent::config::Configuration;
use macvtap_node_agent::config::standalone::Standalone;
use macvtap_node_agent::devices::engine::{Engine, Step};
use macvtap_node_agent::devices::nics::NicNames;
use macvtap_node_agent::devices::offer::Offer;
use macvtap_node_agent::error_chain;
use macvtap_node_agent::kubelet::checkpoint::{self, Given};
use macvtap_node_agent::kubelet::podresources;
use macvtap_node_agent::links::link::{Hardware, Kind, Link};
use macvtap_node_agent::links::notification::Notification;
use macvtap_node_agent::pools::pool::Pool;
use macvtap_proto::podresources::ListPodResourcesResponse;
use netlink_packet_core::{NetlinkDeserializable as _, NetlinkHeader};
use prost::Message as _;
use std::cell::RefCell;
use std::fs;
use std::time::Instant;

const BOOT: &str = "boot-1";

thread_local! {
    /// In memory, where there is such a file system: files are written for every input.
    static DIRECTORY: RefCell<tempfile::TempDir> = RefCell::new(
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    );
}

/// The links of a node: two NICs, a bond over neither, a VLAN.
fn links() -> Vec<Link> {
    let link = |ifindex, name: &str, kind: Kind| {
        let physical = kind == Kind::Physical;
        Link {
            name: name.to_owned(),
            kind,
            mtu: 9000,
            admin_up: true,
            carrier: true,
            hardware: Hardware {
                parent: physical.then(|| format!("virtio{ifindex}")),
                pci_address: physical.then(|| format!("0000:00:{ifindex:02x}.0")),
                ..Hardware::default()
            },
            permanent_mac: physical.then(|| [0x52, 0x54, 0, 0, 0, 1].try_into().unwrap()),
            ..Link::blank(ifindex)
        }
    };
    vec![
        link(3, "dp0", Kind::Physical),
        link(4, "ens10", Kind::Physical),
        link(5, "bond0", Kind::Bond),
        link(6, "dp0.100", Kind::Vlan),
    ]
}

/// One step with these pools and that table; what it leads to is a table that the plugin takes.
fn step(table: DeviceTable, pools: Vec<Pool>) -> Step {
    let mut engine = Engine::new(table, BOOT.to_owned(), false);
    let _ = engine.world.inventory.reset(links());
    engine.world.pools = pools;
    let step = engine.step(Instant::now());
    let json = serde_json::to_vec(&step.evolution.table).unwrap();
    let stored = DeviceTable::parse(&json);
    assert_eq!(stored.as_ref().map_err(|error| error_chain(error)), Ok(&step.evolution.table));
    for (resource, offer) in &step.offers {
        assert_eq!(*resource, offer.resource);
        let counts = offer.counts();
        assert!(counts.allocatable <= counts.capacity);
        assert!(offer.devices().len() <= usize::try_from(counts.capacity).unwrap());
    }
    step
}

pub(super) fn table(bytes: &[u8]) {
    let table = match DeviceTable::parse(bytes) {
        Ok(table) => table,
        Err(error) => return assert!(!error_chain(&error).is_empty()),
    };
    for (resource, entry) in &table.resources {
        let _ = Offer::of_table(resource, entry).counts();
    }
    step(table.clone(), Vec::new());
    step(table, pools());
}

/// Pools of the resources that the seeds of the table have.
fn pools() -> Vec<Pool> {
    let text = r#"[{"name": "dataplane", "lowerDevice": "dp0", "capacity": 6}, {"name": "virt", "type": "HostDevice", "lowerDevice": "ens10"}]"#;
    Standalone::parse(text).unwrap().pools
}

pub(super) fn record(bytes: &[u8]) {
    DIRECTORY.with_borrow(|directory| {
        let paths = Paths::new(directory.path().join("state"), directory.path().join("run"));
        fs::create_dir_all(paths.attachments()).unwrap();
        fs::write(paths.attachments().join("dataplaneMvp0"), bytes).unwrap();
        let listing = records::list(&paths).unwrap();
        assert_eq!(listing.records.len() + listing.damaged.len(), 1, "neither read nor reported");
        for record in listing.records {
            assert_eq!(record.device.to_string(), "dataplaneMvp0", "a record of another device");
        }
    });
}

/// What is noted of the pods of a tap; it is written as it was read.
pub(super) fn tap_note(bytes: &[u8]) -> Option<tap_pods::TapNote> {
    DIRECTORY.with_borrow(|directory| {
        let paths = Paths::new(directory.path().join("state"), directory.path().join("run"));
        let device = DeviceId::new("dataplane".parse().unwrap(), 0);
        let file = paths.run().join("tap-pods").join(device.to_string());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, bytes).unwrap();
        let note = tap_pods::read(&paths, &device)?;
        fs::write(&file, serde_json::to_vec(&note).unwrap()).unwrap();
        assert_eq!(tap_pods::read(&paths, &device).as_ref(), Some(&note));
        Some(note)
    })
}

pub(super) fn given(bytes: &[u8]) -> Vec<Given> {
    DIRECTORY.with_borrow(|directory| {
        fs::write(directory.path().join("kubelet_internal_checkpoint"), bytes).unwrap();
        let _ = checkpoint::devices(directory.path(), &NicNames::default());
        checkpoint::given(directory.path())
    })
}

pub(super) fn checkpoint(bytes: &[u8]) {
    for given in given(bytes) {
        let name = given.resource.rsplit_once('/').map_or(given.resource.as_str(), |(_, name)| name);
        assert!(given.devices.iter().all(|device| device.resource().as_str() == name));
        assert!(given.devices.is_sorted_by_key(DeviceId::slot) && given.ifindexes.is_sorted());
        assert!(!given.devices.is_empty() || !given.nics.is_empty());
    }
}

pub(super) fn pod_resources(bytes: &[u8]) {
    let Ok(answer) = ListPodResourcesResponse::decode(bytes) else { return };
    let pods = answer.pod_resources.len();
    let listing = podresources::listing(answer, |_, id| id.parse().ok());
    assert_eq!(listing.pods.len(), pods);
    assert!(listing.devices.values().all(|pod| listing.pods.contains(pod)));
}

pub(super) fn node_state(bytes: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<MacvtapNodeStateSpec>(bytes) else { return };
    // The schema refuses a pool without links, and such a pool is not written.
    if spec.pools().iter().all(|pool| !pool.settings.links.is_empty()) {
        // Settings that are all defaults are left out, so what is written is compared.
        let written = serde_json::to_vec(&spec).unwrap();
        let again = serde_json::from_slice::<MacvtapNodeStateSpec>(&written).unwrap();
        assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    }
    let wanted = spec.pools().len();
    let configuration = Configuration::compile(spec.pools.unwrap_or_default(), &[], spec.config_hash);
    assert_eq!(configuration.pools.len() + configuration.refused.len(), wanted);
    assert!(configuration.refused.iter().all(|refused| refused.message.contains(&refused.name)));
    let empty = DeviceTable {
        version: VERSION,
        boot_id: BOOT.to_owned(),
        next_ifindex: IFINDEX_FIRST,
        ..DeviceTable::default()
    };
    step(empty, configuration.pools);
}

pub(super) fn standalone(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Standalone::parse(text) {
        Ok(standalone) => drop(step(DeviceTable::default(), standalone.pools)),
        Err(error) => {
            let told = error_chain(&error);
            assert!(told.len() > 10 && told.len() < 4 * text.len() + 2_000, "{told}");
        }
    }
}

pub(super) fn allocation(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let ids: Vec<String> = text.lines().map(str::to_owned).collect();
    let (table, pools) = (DeviceTable::default(), pools());
    thread_local! { static STEP: RefCell<Option<Step>> = const { RefCell::new(None) } }
    STEP.with_borrow_mut(|kept| {
        let step = kept.get_or_insert_with(|| step(table, pools));
        let name: ResourceName = "dataplane".parse().unwrap();
        let offer = &step.offers[&name];
        match offer.grant(&ids) {
            Ok(granted) => {
                assert_eq!(granted.len(), ids.len());
                let told: Vec<String> = granted.iter().map(|granted| granted.device().to_string()).collect();
                assert_eq!(told, ids, "what is granted is what was asked for");
            }
            Err(refusal) => assert!(!error_chain(&refusal).is_empty()),
        }
        let chosen = offer.prefer(&ids, &[], 2);
        assert!(chosen.len() <= 2 && chosen.iter().all(|id| ids.contains(id)));
    });
}

pub(super) fn link(bytes: &[u8]) {
    if let Ok(link) = Link::read(bytes) {
        assert!(!link.name.is_empty() && link.ifindex != 0);
    }
}

/// The type of the message, and its payload.
pub(super) fn notified(bytes: &[u8]) -> Option<Notification> {
    let (kind, payload) = bytes.split_first_chunk()?;
    let mut header = NetlinkHeader::default();
    header.message_type = u16::from_ne_bytes(*kind);
    let Ok(notification) = Notification::deserialize(&header, payload);
    Some(notification)
}

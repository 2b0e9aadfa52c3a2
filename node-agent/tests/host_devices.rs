//! NICs, mostly whole ones, and a kubelet. This kernel has no NIC to give away, so the links are made up; what decides,
//! the socket, the files and the kubelet's side are real. The virtual machines of `e2e/guest-lab` have NICs.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

#[cfg(test)]
mod support;

use base64::Engine as _;
use macvtap::record::{Attachment, State};
use macvtap::table::{DeviceTable, WholeNic};
use macvtap::{records, table_file};
use macvtap_crds::v1alpha1::NodePool;
use macvtap_node_agent::devices::assignment;
use macvtap_node_agent::devices::engine::Engine;
use macvtap_node_agent::devices::nics::{self, NicNames};
use macvtap_node_agent::devices::offer::Offer;
use macvtap_node_agent::kubelet::checkpoint;
use macvtap_node_agent::kubelet::directory::Happened;
use macvtap_node_agent::kubelet::endpoint::{Registration, ResourceServer};
use macvtap_node_agent::kubelet::{Shared, podresources};
use macvtap_node_agent::links::link::{Hardware, Kind, Link};
use macvtap_node_agent::pods::PodAges;
use macvtap_node_agent::pools::pool::Pool;
use prost::Message as _;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::kubelet::Kubelet;
use support::{Node, attachments, is_root};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const BOOT: &str = "boot";

const A: &str = "0000:00:0a.0";
const B: &str = "0000:00:0b.0";

fn nic(ifindex: u32, name: &str, slot: u8) -> Link {
    Link {
        name: name.to_owned(),
        kind: Kind::Physical,
        permanent_mac: Some([2, 0, 0, 0, 0, slot].try_into().unwrap()),
        mtu: 1500,
        hardware: Hardware {
            parent: Some(format!("virtio{slot}")),
            pci_address: Some(format!("0000:00:{slot:02x}.0")),
            numa_node: Some(u32::from(slot) % 2),
            ..Hardware::default()
        },
        ..Link::blank(ifindex)
    }
}

/// What an agent does with the resource `nics`, step by step.
struct Agent {
    engine: Engine,
    shared: Arc<Shared>,
    offer: watch::Sender<Arc<Offer>>,
    stop: CancellationToken,
    _happened: watch::Sender<macvtap_node_agent::kubelet::directory::Happened>,
    runtime: Runtime,
}

impl Agent {
    /// Starts with what is on the disk, and gives whole NICs.
    fn start(node: &Node, links: Vec<Link>) -> Self {
        Self::start_as(node, links, &json!({"type": "HostDevice"}))
    }

    /// Starts with what is on the disk, and with a pool that says this.
    fn start_as(node: &Node, links: Vec<Link>, says: &Value) -> Self {
        let paths = node.paths();
        let table = table_file::load(&paths).unwrap().unwrap_or_else(|| assignment::empty(BOOT, false));
        let shared = Arc::new(Shared::new(
            paths,
            "/nonexistent".into(),
            "/nonexistent".into(),
            PodAges::default(),
            NicNames::of(&table),
        ));
        let mut pool = json!({
            "name": "nics", "uid": "u", "generation": 1, "phase": "Active", "resourceName": "nics",
            "links": [{"kinds": ["Physical"]}],
        });
        pool.as_object_mut().unwrap().extend(says.as_object().unwrap().clone());
        let mut engine = Engine::new(table, BOOT.to_owned(), false);
        engine.world.pools = vec![Pool::compile(serde_json::from_value::<NodePool>(pool).unwrap()).unwrap()];
        engine.world.in_use = checkpoint::devices(&node.plugins(), &shared.nics.borrow()).unwrap_or_default();
        let _ = engine.world.inventory.reset(links);
        let first = decide(&mut engine, &shared);
        let (offer, offered) = watch::channel(Arc::new(first));
        let (happened, happening) = watch::channel(Happened::default());
        let stop = CancellationToken::new();
        let resource = ResourceServer {
            name: "nics".parse().unwrap(),
            directory: node.plugins(),
            offer: offered,
            happened: happening,
            shared: Arc::clone(&shared),
            stop: stop.clone(),
            hand_over: CancellationToken::new(),
            registered: watch::Sender::new(Registration::Pending),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(resource.run());
        Self { engine, shared, offer, stop, _happened: happened, runtime }
    }

    /// Lets it decide after something happened.
    fn step(&mut self) {
        let offer = decide(&mut self.engine, &self.shared);
        self.offer.send_replace(Arc::new(offer));
    }

    fn table(&self) -> &DeviceTable {
        self.engine.table()
    }

    fn end(self) {
        self.stop.cancel();
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

fn decide(engine: &mut Engine, shared: &Shared) -> Offer {
    engine.world.in_use.extend(shared.ledger.recent(assignment::GRACE, Instant::now()));
    let is_away = |nic: &WholeNic| engine.nic_on_node(nic).is_none();
    engine.world.in_pods = nics::in_pods(&shared.paths, engine.table(), is_away);
    let mut step = engine.step(Instant::now());
    table_file::store(&shared.paths, &step.evolution.table).unwrap();
    engine.stored(step.evolution.table);
    shared.nics.send_replace(Arc::new(NicNames::of(engine.table())));
    step.offers.remove(&"nics".parse().unwrap()).unwrap()
}

/// The record of a pod that has the NIC at this address, as the plugin writes it before it moves the NIC.
fn record(agent: &Agent, address: &str) -> Attachment {
    let (device, known) = agent.table().nic(address.parse().unwrap()).unwrap();
    let ifindex = known.nic.ifindex;
    Attachment {
        state: State::Creating,
        ifindex,
        lower_ifindex: ifindex,
        tap: None,
        network: Some("nics".into()),
        nic: Some(attachments::nic(known.nic)),
        ..attachments::lost(&device.to_string(), "vm")
    }
}

/// Name, health and memory node of each device; node -1 for none.
fn list(kubelet: &Kubelet, healthy: usize) -> Vec<(String, String, i64)> {
    let devices = kubelet.await_healthy("nics", healthy).devices.unwrap();
    let described = devices.into_iter().map(|device| {
        let node = device.topology.map_or(-1, |topology| topology.nodes[0].id);
        (device.id, device.health, node)
    });
    described.collect()
}

#[test]
fn nics_are_listed_by_pci_address_with_their_memory_node_and_allocated_without_a_device_node() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let kubelet = Kubelet::start(&node);
    let agent = Agent::start(&node, vec![nic(3, "eth1", 0xa), nic(4, "eth2", 0xb)]);
    let healthy = |id: &str, node| (id.to_owned(), "Healthy".to_owned(), node);
    assert_eq!(list(&kubelet, 2), [healthy(A, 0), healthy(B, 1)]);
    assert!(!kubelet.plugin("nics").unwrap().options.pre_start_required);
    let told = kubelet.allocate_nics("nics", &[B, A]).unwrap();
    assert_eq!(told.envs, [("VIRT-PCI-ADDR".to_owned(), format!("{B},{A},"))].into());
    assert_eq!((told.devices.len(), told.mounts.len()), (0, 0));
    let told = kubelet.allocate_told("nics", &[&[A], &[B]]).unwrap();
    assert_eq!(told[1].envs, [("VIRT-PCI-ADDR".to_owned(), format!("{B},"))].into(), "not its own only");
    assert_eq!(kubelet.prefer("nics", &[B, A], 1), [A]);
    kubelet.pre_start("nics", &[A]).unwrap();
    for (ids, reason) in [
        (&["0000:00:0c.0"][..], "0000:00:0c.0 is not offered"),
        (&[A, "0000:00:0c.0"], "0000:00:0c.0 is not offered"),
        (&["nicsMvp0"], "not a PCI address"),
        (&[A, A], "asked for twice"),
    ] {
        let refused = kubelet.allocate_nics("nics", ids).unwrap_err();
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    assert_eq!(kubelet.registrations(), 1, "the agent has lost its stream");
    agent.end();
}

#[test]
fn macvtaps_on_nics_are_listed_with_the_nics_memory_nodes_unless_their_pool_says_none() {
    if !is_root() {
        return;
    }
    for (topology, nodes) in [("Hint", [0, 1]), ("None", [-1, -1])] {
        let node = Node::new();
        let kubelet = Kubelet::start(&node);
        let on = |ifindex, name, slot| Link { admin_up: true, carrier: true, ..nic(ifindex, name, slot) };
        let links = vec![on(3, "eth1", 0xa), on(4, "eth2", 0xb)];
        let says = json!({"topology": topology, "capacity": {"perLink": 1}});
        let agent = Agent::start_as(&node, links, &says);
        let listed = list(&kubelet, 2);
        let listed: Vec<_> = listed.iter().map(|(id, _, node)| (id.as_str(), *node)).collect();
        assert_eq!(listed, [("nicsMvp0", nodes[0]), ("nicsMvp1", nodes[1])], "{topology}");
        agent.end();
    }
}

#[test]
fn a_nic_in_a_pod_stays_allocatable_to_the_kubelet_over_a_restart_of_the_agent_and_one_unplugged_does_not() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let kubelet = Kubelet::start(&node);
    let mut agent = Agent::start(&node, vec![nic(3, "eth1", 0xa), nic(4, "eth2", 0xb)]);
    let before = list(&kubelet, 2);
    let told = kubelet.allocate_nics("nics", &[A]).unwrap();
    let record = record(&agent, A);
    records::write(&agent.shared.paths, &record).unwrap();
    let _ = agent.engine.world.inventory.remove(3);
    let lists = kubelet.plugin("nics").unwrap().lists;
    agent.step();
    kubelet.await_plugin("nics", |plugin| plugin.lists > lists);
    assert_eq!(list(&kubelet, 2), before);
    let table = agent.table().clone();
    agent.end();

    // All that a new agent knows of the pod is what the kubelet and the plugin have noted.
    note(&node, &told.encode_to_vec());
    let mut agent = Agent::start(&node, vec![nic(4, "eth2", 0xb)]);
    let listed: Vec<_> = list(&kubelet, 2).into_iter().map(|(id, health, _)| (id, health)).collect();
    assert_eq!(listed, [A, B].map(|id| (id.to_owned(), "Healthy".to_owned())));
    assert_eq!(*agent.table(), table);
    assert_eq!(agent.engine.world.in_use, [record.device.clone()].into());

    // Somebody unplugs it there: the plugin's record is gone with it.
    records::remove(&agent.shared.paths, &record).unwrap();
    agent.step();
    let unhealthy = kubelet.await_healthy("nics", 1).devices.unwrap();
    assert_eq!(unhealthy.iter().find(|device| device.id == A).unwrap().health, "Unhealthy");
    assert!(kubelet.allocate_nics("nics", &[A]).unwrap_err().message().contains("eth1"));

    // It comes back under another index and name; to the kubelet it is what it was.
    let _ = agent.engine.world.inventory.apply(nic(9, "dev3", 0xa));
    agent.step();
    list(&kubelet, 2);
    let (device, known) = agent.table().nic(A.parse().unwrap()).unwrap();
    assert_eq!((device, known.nic.ifindex), (record.device, 9));
    agent.end();
}

/// What the kubelet writes down of a container with a NIC of ours, beside one with another plugin's.
fn note(node: &Node, answer: &[u8]) {
    let answer = base64::engine::general_purpose::STANDARD.encode(answer);
    let entry = |resource: &str, id: &str, answer: &str| {
        json!({"PodUID": "u", "ContainerName": "c", "ResourceName": resource,
               "DeviceIDs": {"0": [id]}, "AllocResp": answer})
    };
    let entries = [entry("macvtap.network.kubevirt.io/nics", A, &answer), entry("intel.com/sriov", B, "")];
    let checkpoint = json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1});
    let path: PathBuf = node.plugins().join("kubelet_internal_checkpoint");
    std::fs::write(path, checkpoint.to_string()).unwrap();
}

#[test]
fn the_kubelets_pods_are_known_by_the_pci_addresses_of_their_nics_and_other_plugins_are_left_alone() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let kubelet = Kubelet::start(&node);
    let agent = Agent::start(&node, vec![nic(3, "eth1", 0xa), nic(4, "eth2", 0xb)]);
    list(&kubelet, 2);
    kubelet.add_pod_of("vm", "nics", A);
    kubelet.add_pod_of("stranger", "sriov", B);
    let socket = node.path("/var/lib/kubelet/pod-resources/kubelet.sock");
    let names = Arc::clone(&agent.shared.nics.borrow());
    let listing =
        kubelet.block_on(podresources::list(&socket, |resource, id| names.device(resource, id))).unwrap();
    let listing = listing.expect("a list");
    let devices: Vec<String> = listing.devices.keys().map(ToString::to_string).collect();
    assert_eq!(devices, ["nicsMvp0"]);
    assert_eq!(listing.pods.len(), 2);
    agent.end();
}

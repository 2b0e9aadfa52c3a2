//! What the agent's decisions cost on a large node: one pass over all links and pools, and the choice of devices for a
//! container. Both run on the thread that answers the kubelet.
//!
//! Pure computation: no root, no agent. Results go to `target/bench/results.json`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

use e2e::{layout::Checkout, results};
use macvtap::pci::PciAddress;
use macvtap::record::{Nic, Tuning};
use macvtap_crds::v1alpha1::NodePool;
use macvtap_node_agent::devices::assignment;
use macvtap_node_agent::devices::engine::Engine;
use macvtap_node_agent::devices::nics::InPod;
use macvtap_node_agent::devices::offer::Offer;
use macvtap_node_agent::links::link::{Hardware, Kind, Link};
use macvtap_node_agent::pods::PodName;
use macvtap_node_agent::pools::pool::Pool;
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::{Duration, Instant};

const NICS: u32 = 512;
const POOLS: u32 = 20;

/// Links of a node and devices on each, of further nodes.
const SIZES: [(u32, u32); 5] = [(20, 50), (100, 10), (100, 100), (500, 20), (2_000, 20)];

/// How many pods hold devices, which is as many pods as a node has by default.
const PODS: usize = 110;

/// Devices of the resource of which a container gets some.
const DEVICES: u32 = 40_000;

const ROUNDS: usize = 50;

fn main() {
    let mut results = vec![
        results::durations("agent_step_macvtap", &macvtaps(NICS, 20), None),
        results::durations("agent_step_nics", &whole_nics(), None),
        results::durations("agent_prefer_spread", &prefer("Spread"), None),
        results::durations("agent_prefer_pack", &prefer("Pack"), None),
    ];
    for (links, per_link) in SIZES {
        let name = format!("agent_step_{}_devices_{links}_links", links * per_link);
        results.push(results::durations(&name, &macvtaps(links, per_link), None));
    }
    for result in &results {
        println!("{result}");
    }
    results::merge(Checkout::here().root(), &results).unwrap();
}

/// One of the virtual functions of a few cards.
fn nic(number: u32) -> Link {
    let address = format!("0000:{:02x}:{:02x}.{}", 0x10 + number / 256, number % 256 / 8, number % 8);
    let [.., high, low] = number.to_be_bytes();
    let mac = Some([2, 0, 0, 0, high, low].try_into().unwrap());
    Link {
        name: format!("ens{number}"),
        kind: Kind::Physical,
        mac,
        permanent_mac: mac,
        mtu: 9000,
        admin_up: true,
        carrier: true,
        hardware: Hardware {
            parent: Some(address.clone()),
            pci_address: Some(address),
            driver: Some("iavf".to_owned()),
            vendor: Some("8086".to_owned()),
            ..Hardware::default()
        },
        ..Link::blank(2 + number)
    }
}

/// A pool with every twentieth NIC.
fn pool(number: u32, nics: u32, settings: &Value) -> Pool {
    let names: Vec<String> = (number..nics).step_by(POOLS as usize).map(|nic| format!("ens{nic}")).collect();
    let entries: Vec<Value> = names.chunks(16).map(|names| json!({"names": names})).collect();
    let name = format!("pool{number}");
    let mut pool = json!({
        "name": name, "uid": "u", "generation": 1, "phase": "Active", "resourceName": name, "links": entries,
    });
    pool.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    Pool::compile(serde_json::from_value::<NodePool>(pool).unwrap()).unwrap()
}

/// An engine that has served these pools for a while.
fn engine(nics: u32, settings: &Value) -> Engine {
    let mut engine = Engine::new(assignment::empty("boot", false), "boot".into(), false);
    engine.world.pools = (0..POOLS).map(|number| pool(number, nics, settings)).collect();
    let _ = engine.world.inventory.reset((0..nics).map(nic));
    let step = engine.step(Instant::now());
    assert_eq!(step.offers.len(), POOLS as usize);
    engine.stored(step.evolution.table);
    engine
}

fn steps(engine: &mut Engine) -> Vec<Duration> {
    let step = |_| {
        let begun = Instant::now();
        black_box(engine.step(begun));
        begun.elapsed()
    };
    (0..ROUNDS).map(step).collect()
}

fn macvtaps(nics: u32, per_link: u32) -> Vec<Duration> {
    let mut engine = engine(nics, &json!({"capacity": {"perLink": per_link}}));
    let in_use = (0..PODS).map(|pod| format!("pool{}Mvp{}", pod % 20, pod).parse().unwrap());
    engine.world.in_use.extend(in_use);
    steps(&mut engine)
}

/// Half of the NICs are in pods.
fn whole_nics() -> Vec<Duration> {
    let mut engine = engine(NICS, &json!({"type": "HostDevice"}));
    let devices = engine.table().nics().map(|(device, found)| (device, found.nic.ifindex));
    let devices: Vec<_> = devices.step_by(2).collect();
    assert_eq!(devices.len(), NICS as usize / 2);
    for (device, ifindex) in devices {
        let link = engine.world.inventory.get(ifindex).unwrap().clone();
        let _ = engine.world.inventory.remove(ifindex);
        engine.world.in_use.insert(device.clone());
        engine.world.in_pods.insert(device, in_pod(&link));
    }
    steps(&mut engine)
}

fn in_pod(link: &Link) -> InPod {
    let pci: PciAddress = link.hardware.pci_address.as_ref().unwrap().parse().unwrap();
    let nic = Nic {
        pci,
        identity: assignment::identity(link),
        name: link.name.clone(),
        mac: link.mac,
        mtu: link.mtu,
        up: true,
        promiscuous: false,
        all_multicast: false,
        alias: None,
        alt_names: Vec::new(),
        tuning: Tuning::default(),
        programs: None,
    };
    let pod = PodName { namespace: "default".to_owned(), name: link.name.clone() };
    InPod { pod, nic, hardware: link.hardware.clone() }
}

/// Chooses two of the devices of 512 links, all of which are available.
fn prefer(allocation: &str) -> Vec<Duration> {
    let settings = json!({
        "allocation": allocation, "links": [{"drivers": ["iavf"]}],
        "capacity": {"perLink": 100, "perNode": DEVICES},
    });
    let mut engine = Engine::new(assignment::empty("boot", false), "boot".into(), false);
    engine.world.pools = vec![pool(0, NICS, &settings)];
    let _ = engine.world.inventory.reset((0..NICS).map(nic));
    let step = engine.step(Instant::now());
    let offer: &Offer = step.offers.values().next().unwrap();
    let available: Vec<String> = offer.devices().into_iter().map(|device| device.id).collect();
    assert_eq!(available.len(), DEVICES as usize);
    let must = &available[..1];
    let prefer = |_| {
        let begun = Instant::now();
        assert_eq!(black_box(offer.prefer(&available, must, 3)).len(), 3);
        begun.elapsed()
    };
    (0..ROUNDS).map(prefer).collect()
}

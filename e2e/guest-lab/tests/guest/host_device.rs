//! Whole NICs in pods: the real thing from the agent's list to the way back.

use crate::support::agent::{Agent, pool, table_links};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{Hardware, ip, link, link_in, mac, pci_address};
use crate::support::{Node, eventually, in_guest};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;

/// The agent, with every virtio NIC of the machine in resource `virt`.
fn serve() -> Agent {
    let fields = json!({"type": "HostDevice", "capacity": {"perLink": 1}});
    Agent::with_pools(&[pool("virt", &json!({"drivers": ["virtio_net"]}), &fields)])
}

/// The machine as a node that offers its four NICs, after these commands of `ip`, and what the kubelet calls the NICs.
fn offering(prepared: &[&str]) -> Option<(Kubelet, Agent, BTreeSet<String>)> {
    if !in_guest() {
        return None;
    }
    for words in prepared {
        ip(words);
    }
    let kubelet = Kubelet::start(&Node);
    let agent = serve();
    let all = offered(&kubelet, 4);
    Some((kubelet, agent, all))
}

/// Waits until so many NICs are on offer, and gives what the kubelet calls them.
fn offered(kubelet: &Kubelet, healthy: usize) -> BTreeSet<String> {
    let devices = kubelet.await_healthy("virt", healthy).devices.unwrap();
    devices.into_iter().map(|device| device.id).collect()
}

/// A pod that the kubelet has given a NIC, before its network is made.
fn admitted(kubelet: &Kubelet, name: &'static str, nic: u8) -> Pod {
    let address = pci_address(nic);
    let told = kubelet.allocate_nics("virt", &[&address]).unwrap();
    assert_eq!(told.envs.get("VIRT-PCI-ADDR"), Some(&format!("{address},")));
    assert!(told.devices.is_empty(), "a NIC has no device node");
    kubelet.add_pod_of(name, "virt", &address);
    Pod::new(name, &address)
}

/// A pod comes and goes with a NIC, and gives the MAC address that it had there.
fn serves_another_pod(kubelet: &Kubelet, nic: u8) -> Value {
    let pod = admitted(kubelet, "another", nic);
    let answer = pod.ok("ADD");
    pod.ok("DEL");
    kubelet.remove_pod("another");
    ip("netns del another");
    answer["interfaces"][0]["mac"].clone()
}

/// Addresses for all pods of a test.
fn addresses() -> Value {
    json!({"ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "10.6.0.0/24"}]]}})
}

/// The address in an answer to ADD, without its prefix length.
fn address(answer: &Value) -> String {
    let text = answer["ips"][0]["address"].as_str().unwrap();
    text.split_once('/').unwrap().0.to_owned()
}

/// Whether a pod gets an answer from an address.
fn pings(pod: &str, to: &str) -> bool {
    let namespace = format!("--net=/run/netns/{pod}");
    let words = ["nsenter", &namespace, "/bin/busybox", "ping", "-c", "1", "-W", "1", to];
    Command::new("/bin/busybox").args(words).output().unwrap().status.success()
}

/// What of a link a pod must not change for good.
fn as_on_the_node(name: &str) -> Option<Value> {
    let link = link(name)?;
    let up = link["flags"].as_array()?.contains(&json!("UP"));
    Some(json!([link["address"], link["mtu"], up, link.get("ifalias"), link["promiscuity"]]))
}

fn both_on_the_node(nics: [u8; 2]) -> [Value; 2] {
    nics.map(|nic| as_on_the_node(&format!("eth{nic}")).unwrap())
}

fn await_as_before(name: &str, before: &Value) {
    eventually(&format!("{name} is as it was before"), || {
        (as_on_the_node(name).as_ref() == Some(before)).then_some(())
    });
}

#[test]
fn nics_are_listed_by_pci_address_carry_pods_traffic_and_come_back_under_their_names() {
    // One is in use on the node as far as its settings go, the other one is as the kernel found it.
    let Some((kubelet, agent, all)) = offering(&["link set eth1 mtu 1400 up"]) else { return };
    assert_eq!(all, (0..4).map(pci_address).collect::<BTreeSet<_>>());
    let before = both_on_the_node([1, 3]);

    let keys = |own: Value| {
        let mut keys = addresses();
        keys.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        keys
    };
    let one = admitted(&kubelet, "one", 1).with(keys(json!({})));
    let other = admitted(&kubelet, "other", 3).with(keys(json!({"mac": "02:00:00:00:00:07", "mtu": 1300})));
    let answers = [&one, &other].map(|pod| pod.ok("ADD"));
    for (answer, mac) in answers.iter().zip([mac(1), "02:00:00:00:00:07".into()]) {
        assert_eq!(answer["interfaces"][0]["mac"], mac, "{answer:#}");
    }
    assert!(link("eth1").is_none() && link("eth3").is_none(), "the NICs themselves are in the pods");
    let inside = one.link().unwrap();
    assert_eq!((&inside["address"], &inside["ifalias"]), (&json!(mac(1)), &json!("eth1")));
    assert_eq!(inside["mtu"], 1400, "as on the node");
    assert_eq!(
        (&other.link().unwrap()["mtu"], &other.link().unwrap()["ifalias"]),
        (&json!(1300), &json!("eth3"))
    );
    eventually("one pod hears the other", || pings("one", &address(&answers[1])).then_some(()));
    eventually("the other pod hears the one", || pings("other", &address(&answers[0])).then_some(()));
    one.with_previous(&answers[0]).ok("CHECK");
    other.with_previous(&answers[1]).ok("CHECK");

    // To the kubelet nothing has changed, and nobody else gets them.
    agent.await_devices("virt", "allocated", 2);
    kubelet.await_listed();
    assert_eq!(offered(&kubelet, 4), all);
    assert_eq!(table_links("virt"), ["eth0", "eth1", "eth2", "eth3"]);
    let thief = Pod::new("thief", &pci_address(1));
    assert!(thief.fails("ADD").contains("in use"));

    for (pod, name) in [(&one, "one"), (&other, "other")] {
        pod.ok("DEL");
        assert_eq!(pod.link(), None);
        kubelet.remove_pod(name);
    }
    assert_eq!(both_on_the_node([1, 3]), before);
    one.ok("DEL");
    assert_eq!(offered(&kubelet, 4), all);
    agent.await_devices("virt", "allocated", 0);
}

#[test]
fn a_nic_whose_pod_could_not_be_made_is_on_the_node_as_before() {
    let Some((kubelet, _agent, _)) = offering(&["link set eth1 up"]) else { return };
    let before = as_on_the_node("eth1").unwrap();
    let pod = admitted(&kubelet, "vm", 1);
    let index = link("eth1").unwrap()["ifindex"].clone();
    // Routes are set when the NIC is in the pod, up and with its addresses; nobody there knows this router.
    let mut broken = addresses();
    broken["ipam"]["routes"] = json!([{"dst": "10.8.0.0/24", "gw": "10.9.0.1"}]);
    let message = Pod::new("broken", &pci_address(1)).with(broken).fails("ADD");
    assert!(message.contains("route") && message.contains("unreachable"), "{message}");
    assert_eq!((as_on_the_node("eth1").unwrap(), &link("eth1").unwrap()["ifindex"]), (before, &index));
    // The node takes it for itself after it was allocated.
    ip("address add 10.7.0.1/24 dev eth1");
    assert!(pod.fails("ADD").contains("address"));
    ip("address flush dev eth1");
    pod.ok("ADD");
    pod.ok("DEL");
}

#[test]
fn a_nic_whose_pods_namespace_vanished_gets_its_name_back_and_is_offered_again() {
    let prepared = ["link set eth1 mtu 1400 up", "link set eth2 up"];
    let Some((kubelet, agent, all)) = offering(&prepared) else { return };
    let before = both_on_the_node([1, 2]);
    let pods = [("one", 1), ("two", 2)].map(|(name, nic)| {
        let pod = admitted(&kubelet, name, nic).with(addresses());
        pod.ok("ADD");
        pod
    });
    kubelet.await_listed();
    // The first comes back as net1, the second finds the name taken.
    for name in ["one", "two"] {
        ip(&format!("netns del {name}"));
        kubelet.remove_pod(name);
    }
    for (nic, before) in [1, 2].into_iter().zip(&before) {
        await_as_before(&format!("eth{nic}"), before);
    }
    assert!(link("net1").is_none());
    agent.await_devices("virt", "allocated", 0);
    assert_eq!(offered(&kubelet, 4), all);
    // A DEL that comes after all that finds nothing to do.
    for pod in &pods {
        pod.ok("DEL");
    }
    assert_eq!(as_on_the_node("eth1").as_ref(), Some(&before[0]));
    serves_another_pod(&kubelet, 1);

    // A DEL that comes first does it itself.
    let late = admitted(&kubelet, "late", 2);
    late.ok("ADD");
    ip("netns del late");
    late.ok("DEL");
    await_as_before("eth2", &before[1]);
}

#[test]
fn what_a_pod_built_on_its_nic_is_gone_when_the_nic_is_back() {
    let Some((kubelet, _agent, _)) = offering(&[]) else { return };
    let before = as_on_the_node("eth1").unwrap();
    let pod = admitted(&kubelet, "pod", 1);
    pod.ok("ADD");
    for (name, kind) in [("tagged", "vlan id 7"), ("own", "macvlan mode private")] {
        ip(&format!("-n pod link add link net1 name {name} type {kind}"));
        ip(&format!("-n pod link set {name} up"));
    }
    pod.ok("DEL");
    for name in ["tagged", "own"] {
        assert_eq!(link_in("pod", name), None, "a pod that lives on hears nothing of the node's NIC");
    }
    assert_eq!(as_on_the_node("eth1").unwrap(), before, "{:#}", link("eth1").unwrap());
}

#[test]
fn a_nic_that_is_unplugged_in_a_pod_is_a_dead_device_until_a_new_pod_gets_its_successor() {
    let Some((kubelet, agent, all)) = offering(&[]) else { return };
    let mut hardware = Hardware::new();
    let pod = admitted(&kubelet, "old", 1).with(addresses());
    pod.ok("ADD");
    agent.await_devices("virt", "allocated", 1);

    hardware.unplug(1);
    assert_eq!(pod.link(), None);
    agent.await_devices("virt", "dead", 1);
    assert_eq!(offered(&kubelet, 3), all, "the kubelet must not forget what a pod has");
    kubelet.allocate_nics("virt", &[&pci_address(1)]).unwrap_err();

    pod.ok("DEL");
    kubelet.remove_pod("old");
    agent.await_devices("virt", "dead", 0);
    hardware.plug(1);
    assert_eq!(offered(&kubelet, 4), all);
    assert_eq!(serves_another_pod(&kubelet, 1), mac(1));
    assert!(link("eth1").is_some());
}

#[test]
fn an_agent_that_starts_while_a_nic_is_in_a_pod_offers_it_as_before() {
    if !in_guest() {
        return;
    }
    let configuration = r#"[{"name":"virt","lowerDevice":"eth1","type":"HostDevice"}]"#;
    let kubelet = Kubelet::start(&Node);
    let agent = Agent::standalone(configuration);
    let all = offered(&kubelet, 1);
    assert_eq!(all, BTreeSet::from([pci_address(1)]));
    let start_again = || {
        let former = kubelet.plugin("virt").unwrap().endpoint;
        let agent = Agent::standalone(configuration);
        kubelet.await_plugin("virt", |plugin| plugin.endpoint != former && plugin.healthy() == Some(1));
        agent
    };
    let before = as_on_the_node("eth1").unwrap();
    let pod = admitted(&kubelet, "vm", 1).with(addresses());
    let answer = pod.ok("ADD");
    agent.await_devices("virt", "allocated", 1);
    drop(agent);

    let agent = start_again();
    assert_eq!(offered(&kubelet, 1), all);
    assert_eq!(table_links("virt"), ["eth1"]);
    agent.await_devices("virt", "allocated", 1);
    agent.await_devices("virt", "dead", 0);
    pod.with_previous(&answer).ok("CHECK");
    drop(agent);

    // The pod ends while nobody looks.
    pod.ok("DEL");
    kubelet.remove_pod("vm");
    assert_eq!(as_on_the_node("eth1").unwrap(), before);
    let agent = start_again();
    agent.await_devices("virt", "allocated", 0);
    serves_another_pod(&kubelet, 1);

    // The pod's namespace ends while nobody looks, and nobody calls DEL.
    admitted(&kubelet, "lost", 1).ok("ADD");
    agent.await_devices("virt", "allocated", 1);
    drop(agent);
    ip("netns del lost");
    kubelet.remove_pod("lost");
    let agent = start_again();
    await_as_before("eth1", &before);
    agent.await_devices("virt", "allocated", 0);
    serves_another_pod(&kubelet, 1);
}

#[test]
fn another_nic_at_the_address_of_one_that_a_pod_lost_waits_until_that_pod_is_gone() {
    let Some((kubelet, agent, all)) = offering(&[]) else { return };
    let mut hardware = Hardware::new();
    let old = admitted(&kubelet, "old", 1);
    old.ok("ADD");
    hardware.unplug(1);
    agent.await_devices("virt", "dead", 1);
    let other = "52:54:00:00:00:99";
    hardware.plug_as(1, other);
    let plugged = as_on_the_node("eth1").unwrap();
    // What the agent hears later and answers, it has heard that before.
    ip("address add 10.7.0.1/24 dev eth2");
    kubelet.await_healthy("virt", 2);
    ip("address flush dev eth2");
    assert_eq!(offered(&kubelet, 3), all);
    kubelet.allocate_nics("virt", &[&pci_address(1)]).unwrap_err();
    old.ok("DEL");
    assert_eq!(as_on_the_node("eth1").unwrap(), plugged, "the former pod's DEL is about another NIC");
    kubelet.remove_pod("old");
    assert_eq!(offered(&kubelet, 4), all);
    assert_eq!(serves_another_pod(&kubelet, 1), other);
    assert!(link("eth1").is_some());
}

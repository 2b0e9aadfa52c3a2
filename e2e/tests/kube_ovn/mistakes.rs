//! What goes wrong between a pod, its network and its subnet, and where its reason is told.

use crate::pods::{Pod, interface};
use crate::stage::{PATIENCE, RESOURCE, Stage, play};
use anyhow::{Result, ensure};
use std::time::Duration;

/// A pod that does not start, and words of the Event that says why.
struct Row {
    pod: Pod,
    words: &'static [&'static str],
}

fn rows(stage: &Stage) -> Vec<Row> {
    let mut twice = Pod::on("one-network-twice", "net,net");
    twice.devices = 2;
    let mut both =
        Pod::only_on(stage, "first-and-further", "net").says("k8s.v1.cni.cncf.io/networks", "other");
    both.devices = 2;
    vec![
        // kube-ovn gives one address to both interfaces.
        Row { pod: twice, words: &["is already on net1", "attached once only"] },
        // Multus hands out the resource's first device for the default network, and again for the next one.
        Row { pod: both, words: &["one device cannot serve two networks"] },
        Row {
            pod: Pod::on("no-subnet", "nosub").says(&stage.key("nosub", "logical_switch"), "mistakes-net"),
            words: &["request ip return 400"],
        },
        // Multus and kube-ovn look for it in different namespaces.
        Row {
            pod: Pod::new("default-network-without-namespace")
                .says("v1.multus-cni.io/default-network", "net"),
            words: &["kube-system"],
        },
        Row {
            pod: Pod::on("address-outside", "net").says(&stage.key("net", "ip_address"), "198.51.100.9"),
            words: &["Events", "kube-ovn-controller"],
        },
        Row {
            pod: Pod::on("address-taken", "net").says(&stage.key("net", "ip_address"), "172.22.0.77"),
            words: &["Events", "kube-ovn-controller"],
        },
        // The network's own `ips` have a prefix length by Multus' rules, which kube-ovn does not read.
        Row {
            pod: Pod::on("ips-with-prefix", r#"[{"name":"net","ips":["172.22.0.78/24"]}]"#),
            words: &["Events", "kube-ovn-controller"],
        },
    ]
}

#[test]
fn a_pod_that_kube_ovn_cannot_serve_says_why_in_its_events() -> Result<()> {
    play("mistakes", |stage| {
        stage.network("net", "172.22.0.0/24")?;
        stage.network("other", "172.22.1.0/24")?;
        stage.network_with("nosub", "")?;
        let holder = Pod::on("holder", "net").says(&stage.key("net", "ip_address"), "172.22.0.77");
        stage.apply(std::slice::from_ref(&holder))?;
        stage.ready(std::slice::from_ref(&holder))?;
        let rows = rows(stage);
        let pods: Vec<Pod> = rows.iter().map(|row| row.pod.clone()).collect();
        stage.apply(&pods)?;
        for row in &rows {
            println!("{}: {}", row.pod.name, stage.event(&row.pod.name, row.words)?);
        }
        let found = interface(stage, "holder", "net1")?;
        ensure!(found.addresses == ["172.22.0.77/24"], "the holder lost its address: {found:?}");
        Ok(())
    })
}

#[test]
fn a_provider_that_ends_in_ovn_is_refused_with_the_remedy() -> Result<()> {
    play("testovn", |stage| {
        stage.network("net", "172.22.2.0/24")?;
        let pod = Pod::on("pod", "net");
        stage.apply(&[pod])?;
        let message = stage.event("pod", &["ipam.provider", "net.testovn", "use another namespace"])?;
        println!("{message}");
        Ok(())
    })
}

#[test]
fn a_pod_waits_for_a_full_subnet_and_gets_the_address_that_becomes_free() -> Result<()> {
    play("full", |stage| {
        // One address beside the gateway's.
        stage.network("net", "172.22.3.0/30")?;
        let first = Pod::on("first", "net");
        stage.apply(std::slice::from_ref(&first))?;
        stage.ready(&[first])?;
        let address = interface(stage, "first", "net1")?.addresses;
        stage.apply(&[Pod::on("second", "net")])?;
        println!("{}", stage.event("second", &["NoAvailableAddress"])?);
        println!("{}", stage.event("second", &["no address allocated", "Events"])?);
        stage.delete("first")?;
        stage.ready(&[Pod::on("second", "net")])?;
        ensure!(interface(stage, "second", "net1")?.addresses == address, "the only address");
        Ok(())
    })
}

#[test]
fn a_subnet_with_a_vpc_takes_the_nodes_own_route_and_one_without_leaves_it() -> Result<()> {
    play("vpc", |stage| {
        let node = stage.node("n2")?;
        // The node has an address in the network, as one has that manages it.
        node.exec(&[
            "sh",
            "-c",
            "ip link add vpc0 type veth peer name vpc1 && ip link set vpc0 up && ip link set vpc1 up && \
            ip addr add 172.22.4.250/24 dev vpc0 && ip addr add 172.22.5.250/24 dev vpc0",
        ])?;
        let outcome = (|| {
            stage.subnet("without", "172.22.4.0/24", "")?;
            stage.network_with("without", "")?;
            stage.subnet("with", "172.22.5.0/24", "  vpc: ovn-cluster\n")?;
            let route = |network: &str| node.exec(&["ip", "route", "show", network]);
            let taken = e2e::wait::until("kube-ovn's route", Duration::from_secs(30), || {
                let route = route("172.22.5.0/24")?;
                Ok(route.contains("dev ovn0").then_some(route))
            })?;
            println!("with vpc: {taken}");
            ensure!(!taken.contains("dev vpc0 proto kernel scope link src 172.22.5.250 \n172"), "{taken}");
            // The daemon reads all subnets in one pass, so it has seen the other one as well; a pod on it proves it.
            let pod = Pod::on("pod", "without").on_node("n2");
            stage.apply(std::slice::from_ref(&pod))?;
            stage.ready(&[pod])?;
            let kept = route("172.22.4.0/24")?;
            println!("without vpc: {kept}");
            ensure!(kept.contains("dev vpc0") && !kept.contains("ovn0"), "{kept}");
            Ok(())
        })();
        node.exec(&["ip", "link", "del", "vpc0"])?;
        outcome
    })
}

#[test]
fn two_networks_of_one_resource_give_two_addresses() -> Result<()> {
    play("two", |stage| {
        stage.network("a", "172.22.6.0/24")?;
        stage.network("b", "172.22.7.0/24")?;
        let mut pod = Pod::on("pod", "a,b");
        pod.devices = 2;
        stage.apply(std::slice::from_ref(&pod))?;
        stage.ready(&[pod])?;
        for (name, start) in [("net1", "172.22.6."), ("net2", "172.22.7.")] {
            let found = interface(stage, "pod", name)?;
            ensure!(found.addresses.len() == 1 && found.addresses[0].starts_with(start), "{name}: {found:?}");
        }
        let pod = stage.kubectl.get(&stage.namespace, "pod/pod")?;
        ensure!(pod["spec"]["containers"][0]["resources"]["limits"][RESOURCE] == "2", "{pod}");
        stage.kubectl.wait_for(&stage.namespace, "pod/pod", "condition=Ready", PATIENCE)
    })
}

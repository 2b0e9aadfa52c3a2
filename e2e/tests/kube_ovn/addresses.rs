//! Which addresses and routes an interface gets, of every family and in both places.

use crate::pods::{Interface, Pod, interface, ping};
use crate::stage::{Stage, play};
use anyhow::{Context, Result, ensure};

/// Addresses of a family, as a subnet has them.
struct Family {
    name: &'static str,
    cidr: &'static str,
    /// What addresses start with, and how long their prefix is.
    addresses: &'static [(&'static str, &'static str)],
    gateways: &'static [&'static str],
}

const FAMILIES: [Family; 3] = [
    Family {
        name: "v4",
        cidr: "172.20.4.0/24",
        addresses: &[("172.20.4.", "/24")],
        gateways: &["172.20.4.1"],
    },
    Family {
        name: "v6",
        cidr: "fd00:20:6::/112",
        addresses: &[("fd00:20:6::", "/112")],
        gateways: &["fd00:20:6::1"],
    },
    Family {
        name: "dual",
        cidr: "172.20.8.0/24,fd00:20:8::/112",
        addresses: &[("172.20.8.", "/24"), ("fd00:20:8::", "/112")],
        gateways: &["172.20.8.1", "fd00:20:8::1"],
    },
];

impl Family {
    fn check(&self, interface: &Interface) -> Result<()> {
        ensure!(interface.addresses.len() == self.addresses.len(), "{}: {interface:?}", self.name);
        for (address, (start, prefix)) in interface.addresses.iter().zip(self.addresses) {
            ensure!(address.starts_with(start) && address.ends_with(prefix), "{}: {interface:?}", self.name);
        }
        Ok(())
    }
}

/// The addresses without their prefix length.
fn plain(interface: &Interface) -> Vec<&str> {
    interface.addresses.iter().filter_map(|address| address.split('/').next()).collect()
}

#[test]
fn every_family_reaches_a_further_interface_and_an_only_one_and_pods_of_both_nodes_ping_each_other()
-> Result<()> {
    play("families", |stage| {
        let mut pods = Vec::new();
        for family in &FAMILIES {
            stage.network(family.name, family.cidr)?;
            pods.push(Pod::on(&format!("{}-further", family.name), family.name));
            pods.push(Pod::on(&format!("{}-far", family.name), family.name).on_node("n2"));
            pods.push(Pod::only_on(stage, &format!("{}-only", family.name), family.name));
        }
        stage.apply(&pods)?;
        stage.ready(&pods)?;
        for family in &FAMILIES {
            let pod = |kind: &str| format!("{}-{kind}", family.name);
            let further = interface(stage, &pod("further"), "net1")?;
            let far = interface(stage, &pod("far"), "net1")?;
            let only = interface(stage, &pod("only"), "eth0")?;
            println!("{}: {further:?} {only:?}", family.name);
            for interface in [&further, &far, &only] {
                family.check(interface)?;
            }
            ensure!(
                further.default_routes.iter().all(|route| route.starts_with("eth0 10.78.")),
                "a further interface must not take the pod's default route: {further:?}"
            );
            let expected: Vec<_> = family.gateways.iter().map(|gateway| format!("eth0 {gateway}")).collect();
            ensure!(only.default_routes == expected, "{only:?}");
            for target in plain(&far).into_iter().chain(plain(&only)) {
                ping(stage, &pod("further"), target)?;
            }
            for target in plain(&further) {
                ping(stage, &pod("far"), target)?;
            }
        }
        Ok(())
    })
}

/// A row: the pod, whether it is attached beside the pod network, further annotations, and its default routes.
struct Routed {
    pod: &'static str,
    further: bool,
    says: &'static [(&'static str, &'static str)],
    /// In the order of IPv4 before IPv6.
    default_routes: &'static [&'static str],
    /// A route that it must have.
    route: Option<&'static str>,
}

const ROUTES: [Routed; 5] = [
    Routed {
        pod: "default-route-asked-for",
        further: true,
        says: &[("default_route", "true")],
        default_routes: &["net1 172.20.10.1", "net1 fd00:20:10::1"],
        route: None,
    },
    Routed {
        pod: "default-route-declined",
        further: false,
        says: &[("default_route", "false")],
        default_routes: &[],
        route: None,
    },
    Routed {
        pod: "own-routes-beside",
        further: true,
        says: &[("routes", r#"[{"dst":"10.99.0.0/16","gw":"172.20.10.254"}]"#)],
        default_routes: &["eth0 10.78.1.1"],
        route: Some("10.99.0.0/16 via 172.20.10.254 dev net1"),
    },
    Routed {
        pod: "own-routes-only",
        further: false,
        says: &[("routes", r#"[{"dst":"10.99.0.0/16","gw":"172.20.10.254"}]"#)],
        // kube-ovn's plugin names only the pod's routes here; the gateway it gives means that there is a default route, too.
        default_routes: &["eth0 172.20.10.1", "eth0 fd00:20:10::1"],
        route: Some("10.99.0.0/16 via 172.20.10.254 dev eth0"),
    },
    Routed {
        pod: "own-default-route",
        further: true,
        says: &[("routes", r#"[{"gw":"172.20.10.2"}]"#)],
        default_routes: &["net1 172.20.10.2"],
        route: None,
    },
];

#[test]
fn the_default_route_is_where_the_pods_annotations_put_it() -> Result<()> {
    play("routes", |stage| {
        stage.network("net", "172.20.10.0/24,fd00:20:10::/112")?;
        let pods: Vec<Pod> = ROUTES
            .iter()
            .map(|row| {
                let pod =
                    if row.further { Pod::on(row.pod, "net") } else { Pod::only_on(stage, row.pod, "net") };
                row.says.iter().fold(pod, |pod, (word, value)| pod.says(&stage.key("net", word), value))
            })
            .collect();
        stage.apply(&pods)?;
        stage.ready(&pods)?;
        for row in &ROUTES {
            let name = if row.further { "net1" } else { "eth0" };
            let found = interface(stage, row.pod, name)?;
            println!("{}: {found:?}", row.pod);
            ensure!(found.addresses.len() == 2, "{}: {found:?}", row.pod);
            // The first of each family is used; the cluster network's may wait behind it.
            let used = |is_v6: bool| found.default_routes.iter().find(|route| route.contains(':') == is_v6);
            let used: Vec<&String> = [used(false), used(true)].into_iter().flatten().collect();
            ensure!(used == row.default_routes, "{}: {found:?}", row.pod);
            if let Some(route) = row.route {
                let routes = stage.kubectl.exec(&stage.namespace, row.pod, &["ip", "route"])?;
                ensure!(routes.contains(route), "{}: {routes}", row.pod);
            }
        }
        Ok(())
    })
}

#[test]
fn a_sandbox_that_is_made_again_has_its_address_and_mac_again() -> Result<()> {
    play("again", |stage| {
        stage.network("net", "172.20.11.0/24,fd00:20:11::/112")?;
        let pods = [Pod::on("pod", "net").on_node("n2"), Pod::on("peer", "net")];
        stage.apply(&pods)?;
        stage.ready(&pods)?;
        let before = interface(stage, "pod", "net1")?;
        made_again(stage, "pod", "n2")?;
        let after = interface(stage, "pod", "net1")?;
        ensure!(after == before, "before {before:?}, after {after:?}");
        for target in plain(&after) {
            ping(stage, "peer", target)?;
        }
        Ok(())
    })
}

/// Kills a pod's sandbox and waits until the pod is Ready in another one.
pub(crate) fn made_again(stage: &Stage, pod: &str, node: &str) -> Result<()> {
    let node = stage.node(node)?;
    let sandbox = node.pause_pid(&stage.namespace, pod)?;
    e2e::process::send(sandbox, rustix::process::Signal::KILL);
    stage
        .kubectl
        .wait_until(&stage.namespace, &format!("pod/{pod}"), crate::stage::PATIENCE, |object| {
            let ready = object["status"]["containerStatuses"][0]["ready"] == true;
            let again = node.pause_pid(&stage.namespace, pod).ok().filter(|pid| *pid != sandbox);
            let restarts = object["status"]["containerStatuses"][0]["restartCount"].as_u64();
            (ready && again.is_some() && restarts >= Some(1)).then_some(())
        })
        .context("the pod's next sandbox")
}

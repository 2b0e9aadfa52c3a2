//! What kube-ovn's controller does with a pod's annotations when it gives addresses only, and what becomes of it in the
//! pod: the version that is tested, row by row. A row that changes with a newer kube-ovn is news for our users.

use crate::pods::{Pod, interface};
use crate::stage::{PATIENCE, Stage, play};
use anyhow::{Result, ensure};
use serde_json::Value;

const MAC: &str = "02:23:45:67:89:1";

/// What a pod says, and what it gets.
struct Row {
    pod: &'static str,
    /// The value of the network annotation.
    networks: &'static str,
    /// Words of kube-ovn's annotations for network `net`, and what they say.
    says: Vec<(&'static str, String)>,
    /// Its address, with the prefix length.
    address: Option<&'static str>,
    /// The MAC address of its link.
    mac: Option<String>,
    /// What the controller leaves as annotation `mac_address`.
    noted_mac: Option<String>,
}

impl Row {
    fn new(pod: &'static str, networks: &'static str) -> Self {
        Self { pod, networks, says: Vec::new(), address: None, mac: None, noted_mac: None }
    }

    fn says(mut self, word: &'static str, value: &str) -> Self {
        self.says.push((word, value.to_owned()));
        self
    }
}

fn rows() -> Vec<Row> {
    let mac = |digit: &str| format!("{MAC}{digit}");
    vec![
        Row::new("plain", "net"),
        Row { address: Some("172.21.0.50/24"), ..Row::new("ip", "net").says("ip_address", "172.21.0.50") },
        // What a subnet leaves out can still be asked for.
        Row {
            address: Some("172.21.0.5/24"),
            ..Row::new("ip-left-out", "net").says("ip_address", "172.21.0.5")
        },
        // Dropped: a network's `mac` is the way.
        Row::new("mac-annotation", "net").says("mac_address", &mac("1")),
        Row::new("mac-annotation-wrong", "net").says("mac_address", "zz:11"),
        Row {
            mac: Some(mac("2")),
            noted_mac: Some(mac("2")),
            ..Row::new("mac", r#"[{"name":"net","mac":"02:23:45:67:89:12"}]"#)
        },
        // Of two that differ, the network's wins.
        Row {
            mac: Some(mac("3")),
            noted_mac: Some(mac("3")),
            ..Row::new("mac-twice", r#"[{"name":"net","mac":"02:23:45:67:89:13"}]"#)
                .says("mac_address", &mac("4"))
        },
        Row {
            address: Some("172.21.0.51/24"),
            mac: Some(mac("5")),
            noted_mac: Some(mac("5")),
            ..Row::new("ip-and-mac", r#"[{"name":"net","mac":"02:23:45:67:89:15"}]"#)
                .says("mac_address", &mac("5"))
                .says("ip_address", "172.21.0.51")
        },
        // The form with the interface's name is kept, but gives nothing to the link.
        Row {
            noted_mac: Some(mac("6")),
            ..Row::new("mac-of-interface", r#"[{"name":"net","interface":"net1"}]"#)
                .says("mac_address.net1", &mac("6"))
        },
        Row {
            address: Some("172.21.0.52/24"),
            ..Row::new("bare-ips", r#"[{"name":"net","ips":["172.21.0.52"]}]"#)
        },
        // Only the provider of a subnet counts.
        Row::new("logical-switch", "net").says("logical_switch", "nonsense"),
    ]
}

#[test]
fn the_controller_does_with_a_pods_annotations_what_the_documentation_says() -> Result<()> {
    play("table", |stage| {
        stage.subnet("net", "172.21.0.0/24", "  excludeIps: ['172.21.0.1..172.21.0.40']\n")?;
        stage.network_with("net", "")?;
        let rows = rows();
        let pods: Vec<Pod> = rows.iter().map(|row| pod(stage, row)).collect();
        stage.apply(&pods)?;
        stage.ready(&pods)?;
        rows.iter().try_for_each(|row| check(stage, row))
    })
}

fn pod(stage: &Stage, row: &Row) -> Pod {
    let pod = Pod::on(row.pod, row.networks);
    row.says.iter().fold(pod, |pod, (word, value)| pod.says(&stage.key("net", word), value))
}

fn check(stage: &Stage, row: &Row) -> Result<()> {
    let annotations = stage.annotations(row.pod)?;
    let noted = |word: &str| annotations[stage.key("net", word)].as_str();
    let found = interface(stage, row.pod, "net1")?;
    println!("{}: {found:?}", row.pod);
    let address = noted("ip_address").map(|address| format!("{address}/24"));
    ensure!(
        found.addresses == address.clone().into_iter().collect::<Vec<_>>(),
        "{}: {found:?} {annotations}",
        row.pod
    );
    ensure!(
        row.address.is_none_or(|wanted| address.as_deref() == Some(wanted)),
        "{}: {annotations}",
        row.pod
    );
    for (word, value) in [("allocated", "true"), ("cidr", "172.21.0.0/24"), ("gateway", "172.21.0.1")] {
        ensure!(noted(word) == Some(value), "{}: {annotations}", row.pod);
    }
    // Of the main network, which is not its own here, it says nothing.
    let main =
        annotations.as_object().into_iter().flatten().find(|(key, _)| key.starts_with("ovn.kubernetes.io/"));
    ensure!(main.is_none(), "{}: {annotations}", row.pod);
    ensure!(noted("mac_address") == row.noted_mac.as_deref(), "{}: {annotations}", row.pod);
    if let Some(mac) = &row.mac {
        ensure!(&found.mac == mac, "{}: {found:?}", row.pod);
    } else {
        ensure!(!found.mac.starts_with(MAC), "{}: {found:?}", row.pod);
    }
    // Its own record of the address never has a MAC address.
    let record = record(stage, row.pod, "net")?;
    let recorded = record["spec"]["macAddress"].as_str().unwrap_or_default();
    let wanted =
        if row.pod == "mac-of-interface" { row.noted_mac.as_deref().unwrap_or_default() } else { "" };
    ensure!(recorded == wanted, "{}: {record}", row.pod);
    Ok(())
}

/// kube-ovn's own record of a pod's address in a network.
fn record(stage: &Stage, pod: &str, network: &str) -> Result<Value> {
    let name = format!("ip.kubeovn.io/{pod}.{}.{}", stage.namespace, stage.provider(network));
    stage.kubectl.get("", &name)
}

#[test]
fn networks_in_list_form_work_and_hosts_pods_get_nothing() -> Result<()> {
    play("forms", |stage| {
        stage.subnet("list", "172.21.1.0/24", "")?;
        let one = stage.config("list", "").replacen(r#""cniVersion": "1.0.0", "name": "list", "#, "", 1);
        stage.raw_network(
            "list",
            &format!(r#"{{"cniVersion": "1.0.0", "name": "list", "plugins": [{one}]}}"#),
        )?;
        let mut on_host = Pod::on("on-host", "list");
        "  hostNetwork: true\n".clone_into(&mut on_host.spec);
        on_host.devices = 0;
        let mut done = Pod::on("done", "list");
        "  restartPolicy: Never\n  activeDeadlineSeconds: 1\n".clone_into(&mut done.spec);
        let pods = [Pod::on("in-list", "list"), on_host];
        stage.apply(&pods)?;
        stage.ready(&pods)?;
        let found = interface(stage, "in-list", "net1")?;
        ensure!(found.addresses.len() == 1 && found.addresses[0].starts_with("172.21.1."), "{found:?}");
        let annotations = stage.annotations("on-host")?;
        ensure!(annotations[stage.key("list", "ip_address")].is_null(), "{annotations}");

        // An address is free when its pod is gone, and already when the pod has ended and is not started again.
        stage.apply(&[done])?;
        stage.annotation("done", &stage.key("list", "ip_address"))?;
        stage.kubectl.wait_until(&stage.namespace, "pod/done", PATIENCE, |pod| {
            (pod["status"]["phase"] == "Failed").then_some(())
        })?;
        stage.delete("in-list")?;
        for pod in ["done", "in-list"] {
            let name = format!("ip.kubeovn.io/{pod}.{}.{}", stage.namespace, stage.provider("list"));
            stage.kubectl.wait_for("", &name, "delete", PATIENCE)?;
        }
        stage.kubectl.get(&stage.namespace, "pod/done").map(drop)
    })
}

#[test]
fn an_address_belongs_to_the_virtual_machine_that_owns_the_pod() -> Result<()> {
    play("machines", |stage| {
        stage.network("net", "172.21.2.0/24")?;
        let mut pod = Pod::on("virt-launcher-vm1-abcde", "net");
        pod.metadata =
            "  ownerReferences:\n  - {apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, name: vm1, \
             uid: 3b1c7d1e-0000-4000-8000-000000000001, controller: true}\n"
                .to_owned();
        stage.apply(&[pod])?;
        let key = stage.key("net", "virtualmachine");
        ensure!(stage.annotation("virt-launcher-vm1-abcde", &key)? == "vm1", "it is named after its machine");
        let record = stage.kubectl.wait_until(
            "",
            &format!("ip.kubeovn.io/vm1.{}.{}", stage.namespace, stage.provider("net")),
            PATIENCE,
            |record| Some(record.clone()),
        )?;
        ensure!(record["spec"]["podName"] == "vm1", "{record}");
        Ok(())
    })
}

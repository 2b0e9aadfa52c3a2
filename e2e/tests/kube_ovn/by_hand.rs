//! DEL in every state that pod, namespace and kube-ovn can be in: called by hand, as no runtime can be made to.

use crate::pods::Pod;
use crate::stage::{Stage, play};
use anyhow::{Context, Result, ensure};
use e2e::{Node, kube_ovn};
use std::io::Write as _;
use std::process::{Output, Stdio};

/// A pod that the daemon knows, and one that it has never heard of.
const KNOWN: &str = "known";
const UNKNOWN: &str = "ghost";

/// What a DEL is called with, after an ADD for the known pod.
struct Row {
    about: &'static str,
    pod: &'static str,
    network: &'static str,
    /// Whether the namespace is still there, and whether its path is given.
    namespace: Namespace,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    There,
    Gone,
    NotGiven,
}

const ROWS: [Row; 6] = [
    Row { about: "as-made", pod: KNOWN, network: "net", namespace: Namespace::There },
    Row { about: "no-netns", pod: KNOWN, network: "net", namespace: Namespace::NotGiven },
    Row { about: "other-provider", pod: KNOWN, network: "nosuch", namespace: Namespace::There },
    Row { about: "netns-gone", pod: KNOWN, network: "net", namespace: Namespace::Gone },
    Row { about: "pod-and-netns-gone", pod: UNKNOWN, network: "net", namespace: Namespace::Gone },
    Row { about: "pod-gone", pod: UNKNOWN, network: "net", namespace: Namespace::There },
];

/// One call of a CNI plugin.
struct Call<'a> {
    plugin: &'a str,
    command: &'a str,
    container: &'a str,
    netns: Option<&'a str>,
    pod: &'a str,
    config: String,
}

impl Call<'_> {
    fn run(&self, node: &Node, namespace: &str) -> Result<Output> {
        let Self { plugin, command, container, netns, pod, config } = self;
        let mut call = node.command()?;
        call.args(["env", &format!("CNI_COMMAND={command}"), &format!("CNI_CONTAINERID={container}")]);
        call.args(["CNI_IFNAME=net1", "CNI_PATH=/opt/cni/bin"]);
        call.arg(format!("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}"));
        call.args(netns.map(|name| format!("CNI_NETNS=/run/netns/{name}")));
        call.arg(format!("/opt/cni/bin/{plugin}"));
        call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = call.spawn().with_context(|| format!("run {plugin}"))?;
        child.stdin.take().context("it has an input")?.write_all(config.as_bytes())?;
        child.wait_with_output().with_context(|| format!("wait for {plugin}"))
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The configuration that Multus would hand to the plugin.
fn with_device(config: &str, device: &str) -> String {
    config.replacen('{', &format!(r#"{{"deviceID": "{device}", "#), 1)
}

/// The known pod, on a subnet of these addresses.
fn prepare(stage: &mut Stage, cidr: &str) -> Result<&'static Node> {
    stage.network("net", cidr)?;
    let pods = [Pod::on(KNOWN, "net")];
    stage.apply(&pods)?;
    stage.ready(&pods)?;
    stage.node("n1")
}

#[test]
fn a_del_leaves_nothing_in_whatever_state_pod_and_namespace_are() -> Result<()> {
    play("dels", |stage| {
        let node = prepare(stage, "172.25.0.0/24")?;
        for (slot, row) in ROWS.iter().enumerate() {
            let device = format!("by-handMvp{slot}");
            node.exec(&["ip", "netns", "add", row.about])?;
            let outcome = del(stage, node, row, &device).with_context(|| row.about);
            // It may be gone already.
            let _ = node.exec(&["ip", "netns", "del", row.about]);
            outcome?;
        }
        Ok(())
    })
}

fn del(stage: &Stage, node: &Node, row: &Row, device: &str) -> Result<()> {
    let container = format!("container-{}", row.about);
    let call = |command, pod, network: &str, netns| Call {
        plugin: "macvtap",
        command,
        container: &container,
        netns,
        pod,
        config: with_device(&stage.config(network, ""), device),
    };
    let added = call("ADD", KNOWN, "net", Some(row.about)).run(node, &stage.namespace)?;
    ensure!(
        added.status.success() && String::from_utf8_lossy(&added.stdout).contains("172.25.0."),
        "{}",
        said(&added)
    );
    let links = ["ip", "-n", row.about, "-o", "link", "show", "type", "macvtap"];
    ensure!(node.exec(&links)?.contains("net1"), "ADD made a link");
    let record = format!("/run/macvtap/attachments/{device}");
    node.exec(&["test", "-e", &record])?;
    if row.namespace == Namespace::Gone {
        node.exec(&["ip", "netns", "del", row.about])?;
    }
    let netns = Some(row.about).filter(|_| row.namespace != Namespace::NotGiven);
    // The second is the runtime's, which repeats a DEL until it has seen its success.
    for attempt in ["first", "second"] {
        let deleted = call("DEL", row.pod, row.network, netns).run(node, &stage.namespace)?;
        println!("{} {attempt}: {}", row.about, said(&deleted));
        ensure!(deleted.status.success(), "{attempt}: {}", said(&deleted));
    }
    node.exec(&["test", "!", "-e", &record]).context("its record is gone")?;
    if row.namespace != Namespace::Gone {
        let all = node.exec(&["ip", "-n", row.about, "-o", "link"])?;
        ensure!(all.lines().count() == 1, "only the loopback interface is left: {all}");
    }
    Ok(())
}

#[test]
fn an_add_waits_as_long_as_kube_ovn_waits_for_its_own_record() -> Result<()> {
    play("record", |stage| {
        let node = prepare(stage, "172.25.1.0/24")?;
        let record = format!("ip.kubeovn.io/{KNOWN}.{}.{}", stage.namespace, stage.provider("net"));
        stage.kubectl.run(&["delete", &record, "--wait", "--timeout=60s"])?;
        node.exec(&["ip", "netns", "add", "record"])?;
        let call = |command| Call {
            plugin: "macvtap",
            command,
            container: "container-record",
            netns: Some("record"),
            pod: KNOWN,
            config: with_device(&stage.config("net", ""), "by-handMvp10"),
        };
        // The daemon looks for the record for 20 s, and then does without.
        let added = call("ADD").run(node, &stage.namespace);
        let deleted = call("DEL").run(node, &stage.namespace);
        node.exec(&["ip", "netns", "del", "record"])?;
        let (added, deleted) = (added?, deleted?);
        ensure!(added.status.success(), "{}", said(&added));
        ensure!(String::from_utf8_lossy(&added.stdout).contains("172.25.1."), "{}", said(&added));
        ensure!(deleted.status.success(), "{}", said(&deleted));
        Ok(())
    })
}

#[test]
fn kube_ovn_would_fail_a_del_that_names_the_device_so_it_never_sees_it() -> Result<()> {
    play("device", |stage| {
        let node = prepare(stage, "172.25.2.0/24")?;
        let call = |config: String| Call {
            plugin: "kube-ovn",
            command: "DEL",
            container: "container-device",
            netns: Some("gone"),
            pod: UNKNOWN,
            config,
        };
        let config = stage.config("net", "");
        let without = call(config.clone()).run(node, &stage.namespace)?;
        ensure!(without.status.success(), "{}", said(&without));
        let with = call(with_device(&config, "by-handMvp9")).run(node, &stage.namespace)?;
        println!("{}", said(&with));
        ensure!(!with.status.success(), "kube-ovn has changed: {}", said(&with));
        Ok(())
    })
}

#[test]
fn status_tells_whether_the_daemon_answers() -> Result<()> {
    play("status", |stage| {
        let node = stage.node("n1")?;
        let status = |socket: &str| {
            let config =
                stage.config("net", "").replacen("1.0.0", "1.1.0", 1).replace(kube_ovn::SOCKET, socket);
            let call =
                Call { plugin: "macvtap", command: "STATUS", container: "", netns: None, pod: KNOWN, config };
            call.run(node, &stage.namespace)
        };
        let there = status(kube_ovn::SOCKET)?;
        ensure!(there.status.success(), "{}", said(&there));
        let absent = status("/run/openvswitch/absent.sock")?;
        ensure!(String::from_utf8_lossy(&absent.stdout).contains("\"code\":50"), "{}", said(&absent));
        Ok(())
    })
}

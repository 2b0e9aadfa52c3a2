//! The agent ends at any system call by which it writes: the table, records, notes of taps, device nodes. The next agent
//! serves the same devices, and a pod that takes a tap alone gets it.

use crate::support::kubelet::{Kubelet, await_true};
use crate::support::{Agent, Node, eventually, has_strace, serving};
use macvtap_proto::deviceplugin::{AllocateRequest, ContainerAllocateRequest, PreStartContainerRequest};
use std::time::Duration;

const DEVICE: &str = "dataplaneMvp9";

/// How long the answer of an agent is waited for that may have ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Far more than it makes of one kind.
const MOST: u32 = 60;

/// Calls that only write. `?`: not on every architecture.
const WRITES: [&str; 9] =
    ["fsync", "?rename", "renameat", "renameat2", "symlinkat", "?symlink", "mknodat", "?mknod", "unlinkat"];

/// Calls of which only those on its own files are meant.
const OF_FILES: [&str; 2] = ["openat", "write"];

/// The files that it rewrites for this device.
const FILES: [&str; 3] = [
    "/var/lib/macvtap/.devices.json.new",
    "/run/macvtap/attachments/.dataplaneMvp9.new",
    "/run/macvtap/tap-pods/.dataplaneMvp9.new",
];

/// So many devices are wanted in this round: each round writes the table.
fn configuration(count: usize) -> String {
    format!(r#"[{{"name":"dataplane","lowerDevice":"dp0","capacity":{count}}}]"#)
}

/// An agent whose `number`th call of this kind is the last one of its worker, again and again.
fn doomed(node: &Node, call: &str, number: u32, count: usize) -> Agent {
    let agent = node.agent_command();
    let mut command = node.command("strace");
    command.args(["-qq", "-f", "-o", "/run/strace", "-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:signal=KILL:when={number}")]);
    if OF_FILES.contains(&call) {
        command.args(FILES.iter().flat_map(|file| ["-P", file]));
    }
    command.args(agent.get_args().skip_while(|word| *word != "--").skip(1));
    command.env_remove("NODE_NAME").env("DP_MACVTAP_CONF", configuration(count));
    Agent::start(command)
}

fn was_killed(node: &Node) -> bool {
    std::fs::read_to_string(node.path("/run/strace")).is_ok_and(|log| log.contains("killed by SIGKILL"))
}

/// What the kubelet does for a pod's container, as far as the agent answers.
fn try_container(kubelet: &Kubelet) {
    let Some(plugin) = kubelet.plugin("dataplane").filter(|plugin| plugin.connected) else { return };
    drop(plugin);
    let mut client = kubelet.client("dataplane");
    let ids = || vec![DEVICE.to_owned()];
    let asked = async {
        let requests = vec![ContainerAllocateRequest { devices_ids: ids() }];
        client.allocate(AllocateRequest { container_requests: requests }).await?;
        client.pre_start_container(PreStartContainerRequest { devices_ids: ids() }).await
    };
    let _ = kubelet.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
}

/// Ends all that runs of an agent, as a node without memory does. Until a pass finds none: a supervisor that is still alive
/// starts workers that the pass does not have in its list.
fn kill_all(node: &Node) {
    node.sh(
        "own=$(readlink /proc/self/ns/mnt); found=yes; while [ -n \"$found\" ]; do found=; for process in /proc/[0-9]*; do \
         [ \"$(readlink $process/ns/mnt 2>/dev/null)\" = \"$own\" ] || continue; \
         case $(readlink $process/exe 2>/dev/null) in */macvtap-node-agent) found=yes; kill -KILL ${process#/proc/} 2>/dev/null || true;; esac; \
         done; done",
    );
}

#[test]
fn an_agent_killed_at_any_write_is_continued_by_the_next() {
    if !has_strace() {
        return;
    }
    let Some((node, kubelet, mut agent)) = serving(&configuration(50)) else { return };
    agent.terminate();
    let (mut count, mut killed) = (50, 0);
    for call in WRITES.iter().chain(&OF_FILES) {
        for number in 1..=MOST {
            count = if count == 50 { 60 } else { 50 };
            let is_last = !round(&node, &kubelet, call, number, count);
            if is_last {
                break;
            }
            killed += 1;
        }
    }
    println!("{killed} calls");
    assert!(killed > 3, "only {killed} calls");
}

/// Lets an agent end at its `number`th call, and looks what the next one makes of it. Gives whether there was such a call.
fn round(node: &Node, kubelet: &Kubelet, call: &str, number: u32, count: usize) -> bool {
    let what = format!("{call} {number}");
    let doomed = doomed(node, call, number, count);
    let serves = || {
        kubelet.plugin("dataplane").is_some_and(|plugin| plugin.connected && plugin.healthy() == Some(count))
    };
    eventually(&what, || (was_killed(node) || serves()).then_some(()));
    try_container(kubelet);
    let happened = was_killed(node);
    kill_all(node);
    drop(doomed);
    // Else the end of a former stream is blamed on the next agent. The list alone may stay: the kubelet keeps it where a
    // worker ended while it was being registered.
    await_true(&format!("{what}: the end of the former agent"), || kubelet.sessions() == 0);
    node.sh("rm -f /run/strace");
    let registrations = kubelet.registrations();
    let agent = node.agent(&configuration(count));
    await_true(&format!("{what}: {count} devices"), || kubelet.registrations() > registrations && serves());
    let links = || node.sh("ip -o link show type macvtap | wc -l").trim().to_owned();
    let granted = kubelet.allocate("dataplane", &[DEVICE]);
    assert!(granted.is_ok(), "{what}: {granted:?}\n{}", agent.log());
    kubelet.add_pod("vm", DEVICE);
    let started = kubelet.pre_start("dataplane", &[DEVICE]);
    assert!(started.is_ok(), "{what}: {started:?}\n{}", agent.log());
    assert_eq!(links(), "1", "{what}: {}", agent.log());
    let nodes = node.sh("ls /run/macvtap/dev | grep -v '^\\.' | wc -l");
    assert_eq!(nodes.trim(), "1", "{what}: {}", agent.log());
    kubelet.remove_pod("vm");
    // The next pod gets the device, and what the one before left of it goes.
    kubelet.allocate("dataplane", &[DEVICE]).unwrap();
    assert_eq!(links(), "0", "{what}: {}", agent.log());
    let left = node
        .sh("find /run/macvtap/attachments /run/macvtap/taps /run/macvtap/dev -type f -o -type l -o -type c");
    assert_eq!(left, "", "{what}: {}", agent.log());
    happened
}

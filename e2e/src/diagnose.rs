//! What somebody wants to see who was not there when it failed: everything into one directory, the most telling part as
//! text.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::layout::{self, Checkout};
use crate::{Cluster, process};

/// What is asked of the API, and the file that gets the answer.
const QUESTIONS: [(&str, &str); 7] = [
    ("objects.txt", "get all,net-attach-def,macvtap -A -o wide --ignore-not-found"),
    ("nodes.txt", "describe nodes"),
    ("pods.txt", "describe pods -A"),
    ("events.txt", "get events -A --sort-by=.lastTimestamp"),
    ("pools.yaml", "get mrp -o yaml"),
    ("node-states.yaml", "get mns -o yaml"),
    ("networks.yaml", "get net-attach-def -A -o yaml"),
];

/// What is asked of a node.
const NODE_COMMANDS: [(&str, &str); 5] = [
    ("links.txt", "ip -d link; ip addr; ip route"),
    ("macvtap.txt", "ls -laR /run/macvtap /var/lib/macvtap; cat /var/lib/macvtap/devices.json"),
    ("sockets.txt", "ls -la /var/lib/kubelet/device-plugins"),
    ("mounts.txt", "cat /proc/self/mountinfo"),
    ("processes.txt", "ps -ef"),
];

/// Collects what can be collected and gives the directory and a short text. A part that cannot be had says why.
pub fn collect(cluster: &Cluster) -> Result<(PathBuf, String)> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let dir = Checkout::here().artefacts().join("diagnose").join(format!("{}-{seconds}", cluster.name()));
    let answer = |result: Result<String>| result.unwrap_or_else(|error| format!("{error:#}"));
    let kubectl = cluster.kubectl();
    for (file, question) in QUESTIONS {
        let words: Vec<&str> = question.split_whitespace().collect();
        layout::write(&dir.join(file), answer(kubectl.run(&words)))?;
    }
    for line in pods(cluster) {
        let file = format!("log-{}.txt", line.join("-"));
        let [namespace, pod] = line.each_ref().map(String::as_str);
        let log = kubectl.run(&["-n", namespace, "logs", pod, "--all-containers", "--prefix", "--tail=500"]);
        layout::write(&dir.join(file), answer(log))?;
    }
    for node in cluster.nodes() {
        for (file, command) in NODE_COMMANDS {
            layout::write(&dir.join(node.name()).join(file), answer(node.exec(&["sh", "-c", command])))?;
        }
    }
    if let Some(processes) = cluster.processes() {
        for name in processes.names() {
            layout::write(&dir.join(format!("daemon-{name}.log")), processes.tail(&name, 500))?;
        }
    }
    let excerpt = excerpt(cluster, &dir)?;
    Ok((dir, excerpt))
}

fn pods(cluster: &Cluster) -> Vec<[String; 2]> {
    let format = "jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{\"\\n\"}{end}";
    let lines = cluster.kubectl().run(&["get", "pods", "-A", "-o", format]).unwrap_or_default();
    let names = lines.lines().filter_map(|line| line.split_once(' '));
    names.map(|(namespace, pod)| [namespace.to_owned(), pod.to_owned()]).collect()
}

fn excerpt(cluster: &Cluster, dir: &std::path::Path) -> Result<String> {
    let mut text = String::new();
    if let Some(processes) = cluster.processes() {
        for name in processes.names() {
            if processes.pid(&name).is_none() {
                writeln!(text, "--- {name} is not running; its last lines:\n{}", processes.tail(&name, 5))?;
            }
        }
    }
    writeln!(text, "--- objects\n{}", process::tail(&dir.join("objects.txt"), 40))?;
    writeln!(text, "--- last events\n{}", process::tail(&dir.join("events.txt"), 12))?;
    for [namespace, pod] in pods(cluster) {
        if namespace == crate::install::NAMESPACE {
            let log = dir.join(format!("log-{namespace}-{pod}.txt"));
            writeln!(text, "--- {pod}\n{}", process::tail(&log, 10))?;
        }
    }
    writeln!(text, "--- all of it: {}", dir.display())?;
    Ok(text)
}

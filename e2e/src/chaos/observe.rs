//! Reads the state of the cluster from outside of the product: processes, links in their namespaces, files, and what the API
//! server has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::kube_ovn;
use super::processes::{self, Process};
use super::snapshot::{Assigned, Container, Link, NAMESPACE, POOLS, PREFIX, Pod, Pool, Record, Snapshot};
use crate::{Cluster, Kubectl, Node, namespaces, process};

/// A question to an API server that may be stopped.
const PATIENCE: &str = "--request-timeout=5s";

/// Where the product keeps what it shares on a node.
const RUN: &str = "run/macvtap";

/// Reads everything. `pools` says whether the pools are asked for, which changes slowly and costs as much again.
pub(super) fn snapshot(cluster: &Cluster, at: Duration, pools: bool) -> Result<Snapshot> {
    let layout = cluster.layout().context("a local cluster has a layout")?;
    let mut seen = Snapshot { at, ..Snapshot::default() };
    let processes = processes::of_pods(layout);
    let containers = containers(&processes);
    for node in cluster.nodes() {
        seen.links.extend(links_of_node(node)?);
        let root = node.root()?;
        seen.records.extend(records(&node.name(), &root.join(RUN).join("attachments")));
        let files = fs::read_dir(root.join(RUN).join("dev")).into_iter().flatten().flatten();
        let files = files.filter_map(|file| file.file_name().to_str()?.parse().ok());
        seen.device_nodes.extend(files.map(|ifindex| (node.name(), ifindex)));
    }
    // What is shared with the node was read above.
    let shared: BTreeSet<u64> = cluster.nodes().iter().filter_map(netns_of_node).collect();
    let mut places: BTreeMap<u64, &Process> = BTreeMap::new();
    for process in processes.iter().filter(|process| !shared.contains(&process.netns)) {
        let place = places.entry(process.netns).or_insert(process);
        // A sandbox has no view of the links.
        if place.is_sandbox() {
            *place = process;
        }
    }
    let mut unread = BTreeSet::new();
    for process in places.values() {
        match links_of_process(process) {
            Some(links) => seen.links.extend(links),
            None => {
                unread.insert(process.netns);
            }
        }
    }
    seen.running = processes.iter().map(|process| (process.node.clone(), process.pod.clone())).collect();
    seen.running.dedup();
    // One that is being killed has lost its namespaces a while before it has ended.
    let runs = |process: &Process| process.runs() && !unread.contains(&process.netns);
    seen.containers = containers.into_iter().filter(|(of, _)| runs(of)).map(|(_, found)| found).collect();
    seen.pods = pods(cluster.kubectl()).ok();
    if pools {
        let found = slow(cluster.kubectl()).ok();
        (seen.pools, seen.addresses) = found.unzip();
    }
    Ok(seen)
}

fn netns_of_node(node: &Node) -> Option<u64> {
    namespaces::identity(&namespaces::path(&node.layout().netns())).map(|(_, inode)| inode)
}

/// Containers with a tap, each by one of its processes.
fn containers(processes: &[Process]) -> Vec<(&Process, Container)> {
    let mut found: BTreeMap<&str, (&Process, Container)> = BTreeMap::new();
    for process in processes.iter().filter(|process| !process.is_sandbox()) {
        let taps = taps(process.pid);
        if taps.is_empty() || found.contains_key(process.container.as_str()) {
            continue;
        }
        let container = Container {
            node: process.node.clone(),
            pod: process.pod.clone(),
            id: process.container.clone(),
            netns: process.netns,
            taps,
        };
        found.insert(&process.container, (process, container));
    }
    found.into_values().collect()
}

/// The taps that a process can open. One that is still being made into a container has the devices of the machine.
fn taps(pid: u32) -> Vec<(u32, String)> {
    let device = |path: &str| fs::metadata(path).ok().map(|found| found.dev());
    let directory = format!("/proc/{pid}/root/dev");
    if device(&directory) == device("/dev") {
        return Vec::new();
    }
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let tap = |entry: fs::DirEntry| {
        let ifindex = entry.file_name().to_str()?.strip_prefix("tap")?.parse().ok()?;
        let number = entry.metadata().ok()?.rdev();
        Some((ifindex, format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))))
    };
    let mut taps: Vec<_> = entries.filter_map(tap).collect();
    taps.sort();
    taps
}

fn links_of_node(node: &Node) -> Result<Vec<Link>> {
    let netns = netns_of_node(node).context("a node has a network namespace")?;
    let mut command = node.command()?;
    command.args(["ip", "-j", "-d", "addr", "show", "type", "macvtap"]);
    Ok(links(&process::output(&mut command)?, &node.name(), netns, &node.root()?))
}

/// The macvtaps in the namespace of a process, nothing when it has ended or is about to end.
fn links_of_process(of: &Process) -> Option<Vec<Link>> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", of.pid));
    command.args(["--", "ip", "-j", "-d", "addr", "show", "type", "macvtap"]);
    let text = process::output(&mut command).ok()?;
    Some(links(&text, &of.node, of.netns, Path::new(&format!("/proc/{}/root", of.pid))))
}

/// What `ip` shows. `root` has a sysfs of that namespace.
fn links(text: &str, node: &str, netns: u64, root: &Path) -> Vec<Link> {
    let all: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    let link = |link: &Value| {
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let name = link["ifname"].as_str()?.to_owned();
        let ifindex = number(&link["ifindex"])?;
        let tap = root.join(format!("sys/class/net/{name}/tap{ifindex}/dev"));
        let addresses = link["addr_info"].as_array().into_iter().flatten();
        let addresses = addresses.filter(|address| address["scope"] == "global");
        Some(Link {
            node: node.to_owned(),
            netns,
            ifindex,
            mac: link["address"].as_str().unwrap_or_default().to_owned(),
            lower: number(&link["link_index"]).or_else(|| index_of(root, &link["link"])).unwrap_or_default(),
            tap: fs::read_to_string(tap).ok().map(|text| text.trim().to_owned()),
            addresses: addresses.filter_map(|address| address["local"].as_str().map(str::to_owned)).collect(),
            name,
        })
    };
    // Without links of a kind, `ip` prints empty objects.
    all.iter().filter_map(link).collect()
}

/// The index of the link with this name: a lower link of the same namespace is shown by name.
fn index_of(root: &Path, name: &Value) -> Option<u32> {
    let path = root.join("sys/class/net").join(name.as_str()?).join("ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn records(node: &str, directory: &Path) -> Vec<Record> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let record = |file: fs::DirEntry| {
        let record: Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
        Some(Record {
            node: node.to_owned(),
            device: record["device"].as_str()?.to_owned(),
            pod: record["holder"]["podUid"].as_str().unwrap_or_default().to_owned(),
            ifindex: record["ifindex"].as_u64().and_then(|number| u32::try_from(number).ok())?,
        })
    };
    files.filter_map(record).collect()
}

/// An object or a list of them, or an error soon.
pub(super) fn get(kubectl: &Kubectl, words: &[&str]) -> Result<Value> {
    let text = process::output(kubectl.command().arg(PATIENCE).arg("get").args(words).args(["-o", "json"]))?;
    serde_json::from_str(&text).with_context(|| format!("read {words:?}"))
}

/// The pods of the load.
pub(super) fn pods(kubectl: &Kubectl) -> Result<Vec<Pod>> {
    let list = get(kubectl, &["pods", "-n", NAMESPACE])?;
    Ok(list["items"].as_array().into_iter().flatten().map(pod).collect())
}

fn pod(object: &Value) -> Pod {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (metadata, status) = (&object["metadata"], &object["status"]);
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let failed = (status["phase"] == "Failed").then(|| word(&status["reason"]));
    Pod {
        uid: word(&metadata["uid"]),
        name: word(&metadata["name"]),
        node: word(&object["spec"]["nodeName"]),
        ready: conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
        failed,
        terminating: metadata["deletionTimestamp"].is_string(),
        address: metadata["annotations"][kube_ovn::annotation()].as_str().map(str::to_owned),
    }
}

/// What changes slowly: the pools, and kube-ovn's records.
fn slow(kubectl: &Kubectl) -> Result<(Vec<Pool>, Vec<Assigned>)> {
    let list = get(kubectl, &["macvtapresourcepools,nodes,ips.kubeovn.io"])?;
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pools = POOLS.iter().filter_map(|name| pool(name, items)).collect();
    Ok((pools, items.iter().filter_map(assigned).collect()))
}

/// kube-ovn's record of an address of the load.
fn assigned(item: &Value) -> Option<Assigned> {
    let spec = &item["spec"];
    (item["kind"] == "IP" && spec["namespace"] == NAMESPACE).then_some(())?;
    Some(Assigned {
        pod: spec["podName"].as_str()?.to_owned(),
        address: spec["ipAddress"].as_str()?.to_owned(),
    })
}

fn pool(name: &str, items: &[Value]) -> Option<Pool> {
    let object = items
        .iter()
        .find(|item| item["kind"] == "MacvtapResourcePool" && item["metadata"]["name"] == name)?;
    let status = &object["status"];
    let count = |of: &str, what: &str| status[of][what].as_u64().unwrap_or_default();
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let resource = format!("{PREFIX}/{name}");
    let offered = |node: &Value| node["status"]["allocatable"][&resource].as_str()?.parse::<u64>().ok();
    Some(Pool {
        name: name.to_owned(),
        ready: conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
        allocatable: count("devices", "allocatable"),
        allocated: count("devices", "allocated"),
        dead: count("devices", "dead"),
        unreachable: count("nodes", "unreachable"),
        offered: items.iter().filter(|item| item["kind"] == "Node").filter_map(offered).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_as_ip_shows_them_and_empty_objects_are_none() {
        let text = r#"[{},{"ifindex":16777217,"link_index":3,"ifname":"net1","address":"02:00:00:00:00:01",
            "addr_info":[{"family":"inet","local":"192.0.2.5","scope":"global"},{"local":"fe80::1","scope":"link"}]}]"#;
        let found = links(text, "n1", 7, Path::new("/nowhere"));
        let [link] = &found[..] else { panic!("{found:?}") };
        assert_eq!((link.ifindex, link.lower, link.netns), (16_777_217, 3, 7));
        assert_eq!(link.addresses, ["192.0.2.5"]);
    }

    #[test]
    fn a_namespace_that_cannot_be_read_is_not_one_without_links() {
        // No process has the highest number that the kernel could give.
        let ended = Process {
            pid: 1 << 22,
            parent: 1,
            start: 0,
            command: String::new(),
            node: "n1".into(),
            pod: String::new(),
            container: String::new(),
            netns: 7,
        };
        assert_eq!(links_of_process(&ended), None);
    }

    #[test]
    fn what_the_nodes_offer_is_their_sum() {
        let node = |count: &str| serde_json::json!({"kind": "Node", "status": {"allocatable": {format!("{PREFIX}/chaos-a"): count}}});
        let items = [
            serde_json::json!({"kind": "MacvtapResourcePool", "metadata": {"name": "chaos-a"},
                "status": {"devices": {"allocated": 2}, "conditions": [{"type": "Ready", "status": "True"}]}}),
            node("20"),
            node("12"),
        ];
        let pool = pool("chaos-a", &items).unwrap();
        assert_eq!((pool.offered, pool.allocated, pool.ready), (32, 2, true));
    }

    #[test]
    fn only_kube_ovns_records_of_the_load_are_read() {
        let record = |kind: &str, namespace: &str| serde_json::json!({"kind": kind, "spec": {"namespace": namespace, "podName": "p", "ipAddress": "198.51.100.2"}});
        let wanted = Assigned { pod: "p".into(), address: "198.51.100.2".into() };
        assert_eq!(assigned(&record("IP", NAMESPACE)), Some(wanted));
        assert_eq!(assigned(&record("IP", "")), None, "a node's");
        assert_eq!(assigned(&record("Node", NAMESPACE)), None);
    }
}

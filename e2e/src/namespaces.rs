//! Network namespaces and what connects them, and the mount namespace of a node.
//!
//! A cluster has a switch (`sw`) with two bridges, a namespace for the control plane (`cp`) and one per node. `mgmt`
//! carries the API and pod traffic; `data` is the layer 2 that the nodes' `dp0` and `dp1` share, without any address
//! of ours: they are what a macvtap stands on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::layout::{API_ADDRESS, Layout, MAX_NODES, NodeLayout, SERVICE_CIDR};
use crate::process::{self, Processes};
use crate::wait;

/// The links of a node on the bridge `data`.
pub const DATA_LINKS: [&str; 2] = ["dp0", "dp1"];

/// Larger than what Ethernet has by default, so that pools with jumbo frames can be tried.
const DATA_MTU: &str = "9000";

/// The file behind a network namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs `ip` with a batch of commands in namespace `netns`.
fn ip(netns: &str, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    process::output_with_input(command.args(["-n", netns, "-batch", "-"]), batch)
        .with_context(|| format!("set up {netns}"))
        .map(drop)
}

fn has_link(netns: &str, link: &str) -> bool {
    process::output(Command::new("ip").args(["-n", netns, "link", "show", "dev", link])).is_ok()
}

fn create(netns: &str) -> Result<()> {
    if !path(netns).exists() {
        process::output(Command::new("ip").args(["netns", "add", netns]))?;
    }
    ip(netns, "link set lo up\n")
}

/// Makes the switch, unless it is there.
pub fn ensure_switch(cluster: &Layout) -> Result<()> {
    let switch = cluster.netns("sw");
    create(&switch)?;
    for bridge in ["mgmt", "data"] {
        if !has_link(&switch, bridge) {
            ip(&switch, &format!("link add {bridge} type bridge\nlink set {bridge} addrgenmode none up\n"))?;
        }
    }
    Ok(())
}

/// A veth pair between `netns` and a bridge of the switch.
fn ensure_port(
    cluster: &Layout,
    netns: &str,
    link: &str,
    bridge: &str,
    part: &str,
    setup: &str,
) -> Result<()> {
    if has_link(netns, link) {
        return Ok(());
    }
    let switch = cluster.netns("sw");
    let peer = format!("{part}-{link}");
    ip(
        netns,
        &format!("link add {link} type veth peer name {peer} netns {switch}\n{setup}link set {link} up\n"),
    )?;
    let mtu = if bridge == "data" { format!("mtu {DATA_MTU} ") } else { String::new() };
    ip(&switch, &format!("link set {peer} addrgenmode none {mtu}master {bridge} up\n"))
}

/// Makes the control plane's namespace, unless it is there, with routes to every node's pods: a webhook or an
/// aggregated API in a pod is reached from here.
pub fn ensure_control_plane(cluster: &Layout) -> Result<()> {
    let netns = cluster.netns("cp");
    create(&netns)?;
    ensure_port(cluster, &netns, "eth0", "mgmt", "cp", &format!("addr add {API_ADDRESS}/24 dev eth0\n"))?;
    let routes: Vec<String> = cluster.nodes(MAX_NODES).iter().map(pod_route).collect();
    ip(&netns, &routes.concat())
}

/// Makes a node's network namespace and the links in it, as far as they are missing.
pub fn ensure_node(node: &NodeLayout) -> Result<()> {
    let netns = node.netns();
    let cluster = &node.cluster;
    create(&netns)?;
    let address = format!("addr add {}/24 dev eth0\n", node.address());
    ensure_port(cluster, &netns, "eth0", "mgmt", &node.name(), &address)?;
    for link in DATA_LINKS {
        // A lower link as a platform team prepares it: up and without any address of the host.
        let setup = format!("link set {link} addrgenmode none mtu {DATA_MTU}\n");
        ensure_port(cluster, &netns, link, "data", &node.name(), &setup)?;
    }
    let others = cluster.nodes(MAX_NODES).into_iter().filter(|other| other.index != node.index);
    let mut routes: Vec<String> = others.map(|other| pod_route(&other)).collect();
    // A process of the node needs some route to a Service before kube-proxy's rules see its packet.
    routes.push(format!("route replace {SERVICE_CIDR} dev eth0\n"));
    ip(&netns, &routes.concat())
}

/// The way to a node's pods.
fn pod_route(node: &NodeLayout) -> String {
    format!("route replace {} via {}\n", node.pod_cidr(), node.address())
}

/// What the first process of a node does: private mounts, then it sleeps and keeps them. Arguments: the node's
/// directory, the top of the checkout. With a process namespace it takes the dead that nobody else waits for.
const HOLDER: &str = r#"
set -e
dir=$1 checkout=$2
# Copies of other clusters' namespaces would keep those alive after their end.
umount -R -l /run/netns 2>/dev/null || true
# The links of this network namespace, with the machine's cgroups.
mkdir -p "$dir/cgroup"
mount --rbind /sys/fs/cgroup "$dir/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$dir/cgroup" /sys/fs/cgroup
umount -l "$dir/cgroup"
rmdir "$dir/cgroup"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /run/checkout
mount --rbind "$checkout" /run/checkout
# Mount points that the machine does not have appear only in here.
for parent in /etc /opt /var/lib /var/log; do
  mkdir -p "/run/overlay$parent/upper" "/run/overlay$parent/work" "$parent"
  mount -t overlay -o "lowerdir=$parent,upperdir=/run/overlay$parent/upper,workdir=/run/overlay$parent/work" overlay "$parent"
done
mount --rbind /run/checkout "$checkout"
umount -l /run/checkout
rmdir /run/checkout
for pair in kubelet:/var/lib/kubelet moved:/var/lib/moved containerd:/var/lib/containerd cni:/var/lib/cni macvtap:/var/lib/macvtap \
    etc-cni:/etc/cni opt-cni:/opt/cni pods:/var/log/pods containers:/var/log/containers; do
  mkdir -p "$dir/${pair%%:*}" "${pair#*:}"
  mount --bind "$dir/${pair%%:*}" "${pair#*:}"
done
# The kubelet and volumes with bidirectional propagation need shared mounts.
mount --make-rshared /
echo 1 >/proc/sys/net/ipv4/ip_forward
: >"$dir/ready"
[ $$ = 1 ] || exec sleep infinity
while :; do
  sleep infinity &
  wait $!
done
"#;

/// The daemon that holds a node's mount namespace.
pub fn holder_name(node: &NodeLayout) -> String {
    format!("{}-mounts", node.name())
}

/// Starts the process that holds a node's mount namespace, and a process namespace if it should have one, unless it runs;
/// gives its pid.
pub fn ensure_mounts(processes: &Processes, node: &NodeLayout, own_processes: bool) -> Result<u32> {
    let name = holder_name(node);
    if let Some(pid) = processes.pid(&name) {
        return Ok(pid);
    }
    let ready = node.dir().join("ready");
    crate::layout::remove(&ready)?;
    std::fs::create_dir_all(node.dir()).with_context(|| format!("create {}", node.dir().display()))?;
    let mut command = in_netns(&node.netns());
    command.args(["unshare", "-m", "--propagation", "private"]);
    if own_processes {
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    }
    command.args(["sh", "-c", HOLDER, "sh"]);
    command.arg(node.dir()).arg(node.cluster.checkout.root());
    processes.start(&name, &command)?;
    wait::until("the node's mounts", Duration::from_secs(10), || {
        processes.expect_running(&name)?;
        Ok(processes.pid(&name).filter(|_| ready.exists()))
    })
}

/// A command that will run in a network namespace; append the program.
pub fn in_netns(netns: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(netns).display())).arg("--");
    command
}

/// A command that will run in a node's network and mount namespaces, and in its process namespace if it has one; append
/// the program.
pub fn in_node(holder: u32) -> Command {
    let mut command = nsenter(holder);
    if let Some(processes) = own_processes(holder) {
        command.arg(format!("--pid={}", processes.display()));
    }
    command.arg("--");
    command
}

/// As [`in_node`], for a daemon that [`Processes::start_in`] starts: it would lose its pid with a process between.
pub fn daemon_in_node(holder: u32) -> Command {
    let mut command = nsenter(holder);
    command.arg("--");
    command
}

fn nsenter(holder: u32) -> Command {
    let mut command = Command::new("nsenter");
    // Not the caller's directory: the mount namespace may hide it.
    command.args(["-t", &holder.to_string(), "-m", "-n", "--wd=/"]);
    command
}

/// The process namespace that a node's holder made, if it has made one.
pub fn own_processes(holder: u32) -> Option<PathBuf> {
    let file = PathBuf::from(format!("/proc/{holder}/ns/pid_for_children"));
    (identity(&file)? != identity(Path::new("/proc/self/ns/pid"))?).then_some(file)
}

/// The network namespaces whose names start with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// Whether the process behind this `/proc` directory is in one of these namespaces (device and inode of each).
pub fn holds(proc: &Path, namespaces: &[(u64, u64)]) -> bool {
    identity(&proc.join("ns/net")).is_some_and(|own| namespaces.contains(&own))
}

/// Device and inode of a namespace file.
pub fn identity(file: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(file).ok().map(|found| (found.dev(), found.ino()))
}

/// Removes the network namespaces whose names start with `prefix`.
pub fn remove(prefix: &str) -> Result<()> {
    for netns in list(prefix) {
        process::output(Command::new("ip").args(["netns", "del", &netns]))?;
    }
    Ok(())
}

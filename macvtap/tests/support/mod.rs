//! Namespaces for tests with the real kernel.
//!
//! A node is a process that holds a network and a mount namespace of its own, with tmpfs over the directories the
//! product uses; a pod is one that holds a network namespace. Both end with the test, also when it fails.

#![allow(dead_code, reason = "each test binary uses another part")]

use macvtap::netns::Netns;
use macvtap::paths::Paths;
use macvtap::table::{
    self, DeviceTable, Devices, IFINDEX_FIRST, LinkIdentity, LowerLink, Owner, Resource, SlotRange, TapOnly,
    WholeNic,
};
use macvtap::{boot, mode::Mode, table_file};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Whether this is root. Without it a test that needs the kernel fails where `REQUIRE_ROOT=1`, else it says that it was
/// skipped.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "REQUIRE_ROOT=1, but this is not root"
    );
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// First index of a range that no other test of this or another run uses: the kernel names taps by index, in one
/// directory for all namespaces.
pub(crate) fn first_ifindex() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let run = std::process::id() % 8_192;
    let first = NEXT.fetch_add(64, Ordering::Relaxed);
    assert!(first < 0x8000, "more nodes than this program has ranges for");
    IFINDEX_FIRST + run * 0x8000 + first
}

/// A process that only keeps namespaces alive.
#[derive(Debug)]
pub(crate) struct Holder {
    child: Child,
}

impl Holder {
    /// Starts `unshare` with these options; `prepare` is a shell command that runs inside first.
    fn start(options: &[&str], prepare: &str) -> Self {
        let script = format!("set -e; {prepare} echo ready; exec sleep infinity");
        // Ends with the thread that runs the test, should that be killed.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(options)
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "namespaces could not be made");
        Self { child }
    }

    /// Where its network namespace is.
    pub(crate) fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.child.id()).into()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process and waits, so its namespaces have no process left.
    pub(crate) fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.end();
    }
}

/// A pod's network namespace.
pub(crate) fn pod() -> Holder {
    Holder::start(&["--net"], "ip link set lo up;")
}

/// A node with a table, and pods; none where this is not root.
pub(crate) fn node_and_pods<const PODS: usize>() -> Option<(Node, [Holder; PODS])> {
    is_root().then(|| (Node::with_table(), std::array::from_fn(|_| pod())))
}

/// The same without a table.
pub(crate) fn bare_node_and_pods<const PODS: usize>() -> Option<(Node, [Holder; PODS])> {
    is_root().then(|| (Node::new(), std::array::from_fn(|_| pod())))
}

/// Everything that a call may leave on the node and in the pod.
pub(crate) fn state(node: &Node, pod: &Holder) -> (String, String) {
    (node.traces(), Node::ip(pod, "-br link"))
}

/// A node with a lower link `dp0` (MTU 1500), which is the end of a cable.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) holder: Holder,
    pub(crate) first_ifindex: u32,
}

impl Node {
    pub(crate) fn new() -> Self {
        let prepare = "mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib; mkdir -p /run/netns; \
                       ip link set lo up; ip link add dp0 type veth peer name dp1; ip link set dp0 up; ip link set dp1 up;";
        let holder = Holder::start(&["--net", "--mount", "--propagation", "private"], prepare);
        Self { holder, first_ifindex: first_ifindex() }
    }

    /// The node's directories, as seen from outside.
    pub(crate) fn paths(&self) -> Paths {
        let root = format!("/proc/{}/root", self.holder.child.id());
        Paths::new(format!("{root}/var/lib/macvtap"), format!("{root}/run/macvtap"))
    }

    /// A command inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.holder.child.id().to_string();
        command.args(["--target", &target, "--net", "--mount", "--", program]);
        command
    }

    /// Runs a shell command inside and gives what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        shown(script, &self.command("sh").args(["-c", script]).output().unwrap())
    }

    /// Runs `ip` in a pod and gives what it printed.
    pub(crate) fn ip(pod: &Holder, arguments: &str) -> String {
        let net = format!("--net={}", pod.netns().display());
        let output = Command::new("nsenter").args([&net, "ip"]).args(arguments.split(' ')).output().unwrap();
        shown(arguments, &output)
    }

    /// Runs Rust inside the node's network namespace.
    pub(crate) fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        Netns::open(&self.holder.netns()).unwrap().enter(work).unwrap()
    }

    /// Index of a link of the node.
    pub(crate) fn ifindex(&self, name: &str) -> u32 {
        self.sh(&format!("cat /proc/net/dev >/dev/null; ip -o link show {name}"))
            .split(':')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A table with resource `dataplane`: four devices on `dp0`.
    pub(crate) fn table(&self) -> DeviceTable {
        let link = LowerLink {
            ifindex: self.ifindex("dp0"),
            name: "dp0".into(),
            identity: LinkIdentity::Name { kind: "veth".into(), name: "dp0".into() },
            mode: Mode::Bridge,
            ranges: vec![SlotRange { first_slot: 0, count: 4, first_ifindex: self.first_ifindex }],
        };
        let resource = Resource {
            pool: None,
            prefix: "macvtap.network.kubevirt.io".into(),
            mtu: None,
            promiscuous: false,
            all_multicast: true,
            owner: Owner::default(),
            tap_only: TapOnly::Forbidden,
            devices: Devices::Macvtaps(vec![link]),
        };
        DeviceTable {
            version: table::VERSION,
            boot_id: boot::boot_id().unwrap(),
            next_ifindex: self.first_ifindex + 4,
            standalone: false,
            resources: BTreeMap::from([("dataplane".parse().unwrap(), resource)]),
            ..DeviceTable::default()
        }
    }

    /// The table of a node that gives `dp0` away as a whole.
    pub(crate) fn make_nic(table: &mut DeviceTable, address: &str) {
        for resource in table.resources.values_mut() {
            let LowerLink { ifindex, name, identity, .. } = resource.links()[0].clone();
            let address = address.parse().unwrap();
            let nic = WholeNic { address, number: 0, ifindex, name, identity };
            resource.devices = Devices::Nics(vec![nic]);
        }
    }

    /// Stores [`Node::table`].
    pub(crate) fn with_table() -> Self {
        let node = Self::new();
        node.store_table(|_| ());
        node
    }

    /// Stores [`Node::table`] with a change.
    pub(crate) fn store_table(&self, change: impl FnOnce(&mut DeviceTable)) {
        let mut table = self.table();
        change(&mut table);
        table_file::store(&self.paths(), &table).unwrap();
    }

    /// Everything that an attachment may leave on the node: links, and files below `/run/macvtap` but the locks.
    pub(crate) fn traces(&self) -> String {
        self.sh("ip -br link | cut -d' ' -f1; cd /run; find macvtap -type f -o -type l -o -type c 2>/dev/null | grep -v /locks/ | sort; true")
    }
}

fn shown(what: &str, output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {stdout}{stderr}");
    stdout.into_owned()
}

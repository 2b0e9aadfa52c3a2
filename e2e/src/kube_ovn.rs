//! kube-ovn beside the pod network: its controller, a daemon on every node, and below them OVN and Open vSwitch, all in
//! the nodes' namespaces.
//!
//! It is not the main network of a cluster here; it gives addresses to further ones, which kube-ovn calls the non-primary mode.
//! Open vSwitch runs with its datapath in user space, so the kernel needs no module. The central databases and the
//! controller are processes of the first node, as they are where kube-ovn's chart puts them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::Signal;

use crate::kubectl::Kubectl;
use crate::layout::{self, API_ADDRESS, API_PORT, Checkout, SERVICE_CIDR};
use crate::node::{self, Node};
use crate::pki::Pki;
use crate::process::{self, Processes};
use crate::{components, wait};

/// kube-ovn's user in the API.
pub const USER: &str = "kube-ovn";

/// Where the daemon of a node answers kube-ovn's CNI plugin.
pub const SOCKET: &str = "/run/openvswitch/kube-ovn-daemon.sock";

/// The controller among the cluster's daemons.
pub const CONTROLLER: &str = "kube-ovn-controller";

/// Ports of the central databases.
const NORTHBOUND: u16 = 6641;
const SOUTHBOUND: u16 = 6642;

/// The database of a node's switch, where all its tools look for it.
const SWITCH_DB: &str = "unix:/run/openvswitch/db.sock";

/// How long one step may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// kube-ovn on a cluster's nodes.
#[derive(Clone, Copy, Debug)]
pub struct KubeOvn<'a> {
    checkout: &'a Checkout,
    processes: &'a Processes,
    nodes: &'a [Node],
}

/// Builds kube-ovn and puts together what is made from its sources.
pub fn build(checkout: &Checkout) -> Result<()> {
    components::build_kube_ovn(checkout)?;
    let dir = files(checkout);
    let stamp = dir.join("version");
    let version = components::kube_ovn_version(checkout)?;
    let _lock = checkout.lock("kube-ovn")?;
    if fs::read_to_string(&stamp).is_ok_and(|made| made == version) {
        return Ok(());
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    process::output(Command::new(checkout.bin().join("kube-ovn-schemas")).arg(&dir))?;
    let kinds = components::kube_ovn_sources(checkout)?.join("charts/kube-ovn/templates/kube-ovn-crd.yaml");
    let kinds = fs::read(&kinds).with_context(|| format!("read {}", kinds.display()))?;
    layout::write(&dir.join("kinds.yaml"), kinds)?;
    layout::write(&stamp, version)
}

/// Database schemas and kinds.
fn files(checkout: &Checkout) -> PathBuf {
    checkout.artefacts().join("kube-ovn")
}

impl<'a> KubeOvn<'a> {
    /// That of these nodes, whose cluster has these daemons.
    pub fn new(checkout: &'a Checkout, processes: &'a Processes, nodes: &'a [Node]) -> Self {
        Self { checkout, processes, nodes }
    }

    /// Starts what does not run, and waits until every node can serve pods.
    pub fn ensure(&self, kubectl: &Kubectl, pki: &Pki) -> Result<()> {
        for node in self.nodes {
            pki.kubeconfig(&kubeconfig(node), USER, &format!("https://{API_ADDRESS}:{API_PORT}"))?;
            node::install(&self.checkout.bin().join("kube-ovn"), &node.cni_bin().join("kube-ovn"))?;
        }
        thread::scope(|scope| {
            let kinds = scope.spawn(|| self.apply_kinds(kubectl));
            let switches: Vec<_> =
                self.nodes.iter().map(|node| scope.spawn(|| self.ensure_switch(node))).collect();
            let central = self.ensure_central();
            for switch in switches {
                switch.join().map_err(|_| anyhow!("starting a switch panicked"))??;
            }
            kinds.join().map_err(|_| anyhow!("creating kube-ovn's kinds panicked"))??;
            central
        })?;
        // ovn-controller was seen to die on a southbound database that northd had not filled yet.
        let northbound = format!("--db={}", self.database(NORTHBOUND)?);
        self.run(self.central()?, "ovn-nbctl", &[&northbound, "--timeout=30", "--wait=sb", "sync"])?;
        self.start_controller()?;
        for node in self.nodes {
            self.start_ovn_controller(node)?;
            self.start_daemon(node)?;
        }
        self.nodes.iter().try_for_each(|node| self.wait_daemon(node))
    }

    /// Starts the processes that do not run, except those of which `is_stopped` approves, by the name of a daemon or of a
    /// whole node, and waits for none of them: what their kubelets do for those that end while the cluster is broken.
    pub fn revive(&self, is_stopped: impl Fn(&str) -> bool) -> Result<()> {
        let runs = |name: &str| self.processes.pid(name).is_some();
        let central = self.central()?;
        if !is_stopped(&central.name()) {
            if !["ovn-nb", "ovn-sb", "ovn-northd"].into_iter().all(runs) {
                self.ensure_central()?;
            }
            if !is_stopped(CONTROLLER) {
                self.start_controller()?;
            }
        }
        for node in self.nodes.iter().filter(|node| !is_stopped(&node.name())) {
            if !switch(node).iter().all(|name| runs(name)) {
                self.ensure_switch(node)?;
            }
            self.start_ovn_controller(node)?;
            if !is_stopped(&daemon(node)) {
                self.start_daemon(node)?;
            }
        }
        Ok(())
    }

    fn apply_kinds(&self, kubectl: &Kubectl) -> Result<()> {
        let file = files(self.checkout).join("kinds.yaml").display().to_string();
        kubectl
            .run(&["apply", "--server-side", "--force-conflicts", "-f", &file])
            .context("create kube-ovn's kinds")
            .map(drop)
    }

    fn central(&self) -> Result<&'a Node> {
        self.nodes.first().context("kube-ovn needs a node")
    }

    /// A command in a node's namespaces that finds the programs of OVN and Open vSwitch.
    fn command(&self, node: &Node, program: &str) -> Result<Command> {
        let debian = self.checkout.debian();
        let own = ["usr/bin", "usr/sbin", "usr/lib/openvswitch-switch"].map(|dir| debian.join(dir));
        let own = own.map(|dir| dir.display().to_string()).join(":");
        let mut command = node.command()?;
        command.arg(program).env("PATH", format!("{own}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"));
        Ok(command)
    }

    fn run(&self, node: &Node, program: &str, args: &[&str]) -> Result<String> {
        process::output(self.command(node, program)?.args(args))
    }

    fn create_database(&self, node: &Node, file: &str, schema: &Path) -> Result<()> {
        if node.exec(&["test", "-e", file]).is_ok() {
            return Ok(());
        }
        self.run(node, "ovsdb-tool", &["create", file, &schema.display().to_string()]).map(drop)
    }

    /// The databases of the whole cluster and what translates one into the other.
    fn ensure_central(&self) -> Result<()> {
        let node = self.central()?;
        node.exec(&["mkdir", "-p", "/etc/ovn", "/run/ovn", "/var/log/kube-ovn"])?;
        for (name, port) in [("nb", NORTHBOUND), ("sb", SOUTHBOUND)] {
            let database = format!("/etc/ovn/{name}.db");
            // The distribution's schemas are older than what kube-ovn's controller takes.
            let schema = files(self.checkout).join(format!("ovn-{name}.ovsschema"));
            self.create_database(node, &database, &schema)?;
            let mut server = self.command(node, "ovsdb-server")?;
            server.args(["-vconsole:warn", &format!("--pidfile=/run/ovn/{name}.pid")]);
            server.arg(format!("--unixctl=/run/ovn/{name}.ctl"));
            server.arg(format!("--remote=ptcp:{port}:{}", node.layout().address())).arg(&database);
            self.processes.start(&format!("ovn-{name}"), &server)?;
        }
        let mut northd = self.command(node, "ovn-northd")?;
        northd.args(["-vconsole:warn", "--pidfile=/run/ovn/ovn-northd.pid"]);
        northd.arg(format!("--ovnnb-db={}", self.database(NORTHBOUND)?));
        northd.arg(format!("--ovnsb-db={}", self.database(SOUTHBOUND)?));
        self.processes.start("ovn-northd", &northd)
    }

    fn database(&self, port: u16) -> Result<String> {
        Ok(format!("tcp:{}:{port}", self.central()?.layout().address()))
    }

    /// Open vSwitch of a node.
    fn ensure_switch(&self, node: &Node) -> Result<()> {
        let name = node.name();
        node.exec(&["mkdir", "-p", "/etc/openvswitch", "/run/openvswitch", "/run/ovn", "/var/log/kube-ovn"])?;
        let schema = self.checkout.debian().join("usr/share/openvswitch/vswitch.ovsschema");
        self.create_database(node, "/etc/openvswitch/conf.db", &schema)?;
        node.exec(&["sh", "-c", "echo \"$1\" >/etc/openvswitch/system-id.conf", "sh", &name])?;
        let mut server = self.command(node, "ovsdb-server")?;
        server.args(["-vconsole:warn", "--pidfile=/run/openvswitch/ovsdb-server.pid"]);
        server.args(["--remote=punix:/run/openvswitch/db.sock", "/etc/openvswitch/conf.db"]);
        let [database, program] = switch(node);
        self.processes.start(&database, &server)?;
        self.vsctl(node, &["--no-wait", "init"])?;
        let identity = [
            format!("external_ids:system-id={name}"),
            format!("external_ids:hostname={name}"),
            format!("external_ids:ovn-remote={}", self.database(SOUTHBOUND)?),
            format!("external_ids:ovn-encap-ip={}", node.layout().address()),
            "external_ids:ovn-encap-type=geneve".to_owned(),
            "external_ids:ovn-bridge-datapath-type=netdev".to_owned(),
        ];
        let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
        self.vsctl(node, &[&["--no-wait", "set", "Open_vSwitch", "."], &identity[..]].concat())?;
        let mut switch = self.command(node, "ovs-vswitchd")?;
        switch.args(["-vconsole:warn", "--pidfile=/run/openvswitch/ovs-vswitchd.pid", SWITCH_DB]);
        self.processes.start(&program, &switch)?;
        let bridge = ["set", "bridge", "br-int", "datapath_type=netdev", "fail-mode=secure"];
        self.vsctl(node, &[&["--may-exist", "add-br", "br-int", "--"], &bridge[..]].concat())
    }

    /// What programs the node's switch by the southbound database.
    fn start_ovn_controller(&self, node: &Node) -> Result<()> {
        let mut controller = self.command(node, "ovn-controller")?;
        controller.args(["-vconsole:warn", "--pidfile=/run/ovn/ovn-controller.pid", SWITCH_DB]);
        self.processes.start(&format!("{}-ovn-controller", node.name()), &controller)
    }

    fn vsctl(&self, node: &Node, args: &[&str]) -> Result<()> {
        self.run(node, "ovs-vsctl", &[&["--timeout=20", "--retry"], args].concat()).map(drop)
    }

    /// One of kube-ovn's own programs, with the environment that its pod would have.
    fn program(&self, node: &Node, program: &str, pod: &str) -> Result<Command> {
        let path = self.checkout.bin().join(program).display().to_string();
        let mut command = self.command(node, &path)?;
        let address = node.layout().address();
        command.env("NODE_NAME", node.name()).env("POD_NAME", pod).env("POD_NAMESPACE", "kube-system");
        command.env("POD_IP", &address).env("POD_IPS", &address).env("ENABLE_BIND_LOCAL_IP", "true");
        // Parts of it read the variable, others the flag.
        command.env("KUBECONFIG", kubeconfig(node));
        command.arg(format!("--kubeconfig={}", kubeconfig(node).display()));
        command.arg(format!("--service-cluster-ip-range={SERVICE_CIDR}"));
        command.args(["--non-primary-cni-mode=true", "--enable-metrics=false", "--logtostderr=true"]);
        Ok(command)
    }

    /// Starts the controller, unless it runs.
    pub fn start_controller(&self) -> Result<()> {
        let mut command = self.program(self.central()?, CONTROLLER, "kube-ovn-controller-0")?;
        command.arg(format!("--ovn-nb-addr={}", self.database(NORTHBOUND)?));
        command.arg(format!("--ovn-sb-addr={}", self.database(SOUTHBOUND)?));
        // Services and policies are the main network's; the distribution's OVN lacks what these would use.
        command.args(["--enable-lb=false", "--enable-np=false"]);
        self.processes.start(CONTROLLER, &command)
    }

    /// Starts the daemon of a node, unless it runs.
    pub fn start_daemon(&self, node: &Node) -> Result<()> {
        let name = daemon(node);
        if self.processes.pid(&name).is_none() {
            // It does not remove what a killed one left behind: kube-ovn's start script does.
            node.exec(&["rm", "-f", SOCKET])?;
        }
        let mut command = self.program(node, "kube-ovn-daemon", &name)?;
        command.args(["--ovs-socket=/run/openvswitch/db.sock", "--iface=eth0"]);
        command.arg(format!("--bind-socket={SOCKET}"));
        self.processes.start(&name, &command)
    }

    /// Waits until the daemon of a node answers pods. It ends when OVN does not forward in time, and is started again, as
    /// its kubelet would.
    pub fn wait_daemon(&self, node: &Node) -> Result<()> {
        wait::until(&format!("kube-ovn on {}", node.name()), PATIENCE, || {
            self.processes.expect_running(CONTROLLER)?;
            self.start_ovn_controller(node)?;
            self.start_daemon(node)?;
            Ok(node.exec(&["test", "-S", SOCKET]).is_ok().then_some(()))
        })
    }

    /// Kills the controller.
    pub fn kill_controller(&self) -> Result<()> {
        self.processes.stop(CONTROLLER, Signal::KILL, Duration::from_secs(5))
    }

    /// Kills the daemon of a node; its socket stays, as it does then.
    pub fn kill_daemon(&self, node: &Node) -> Result<()> {
        self.processes.stop(&daemon(node), Signal::KILL, Duration::from_secs(5))
    }
}

/// The name of a node's daemon among the cluster's daemons.
pub fn daemon(node: &Node) -> String {
    format!("{}-kube-ovn-daemon", node.name())
}

/// The names of the daemons of a node's Open vSwitch.
fn switch(node: &Node) -> [String; 2] {
    ["ovsdb-server", "ovs-vswitchd"].map(|part| format!("{}-{part}", node.name()))
}

fn kubeconfig(node: &Node) -> PathBuf {
    node.layout().dir().join("kube-ovn.kubeconfig")
}

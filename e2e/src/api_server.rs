//! An API server without nodes, for tests of kinds, rules and controllers: etcd and kube-apiserver on loopback ports,
//! ready in about three seconds, no root needed.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::control_plane::{self, Ports};
use crate::layout::{self, Checkout};
use crate::pki::Pki;
use crate::{Kubectl, components, process, wait};

/// A running pair of etcd and kube-apiserver. It ends when the value is dropped, and at the latest with this process.
#[derive(Debug)]
pub struct ApiServer {
    dir: PathBuf,
    kubectl: Kubectl,
    pki: Pki,
    ports: Ports,
    children: Vec<(&'static str, Child)>,
}

/// The namespace of the service accounts of [`ApiServer::account`].
pub const ACCOUNTS_NAMESPACE: &str = "macvtap-system";

const OPERATOR: &str = "system:serviceaccount:macvtap-system:macvtap-operator";
const AGENT: &str = "system:serviceaccount:macvtap-system:macvtap-node-agent";
const ACCOUNT_GROUPS: &str = "system:serviceaccounts,system:serviceaccounts:macvtap-system";

/// A user whose requests the API server authorizes and queues as those of the product's service account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// The operator.
    Operator,
    /// The node agents, which share one account.
    Agent,
}

/// Whether etcd waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Ignored,
    Waited,
}

/// File beside the kubeconfig with one JSON object for each request of a service account: who did what.
pub const AUDIT_LOG: &str = "audit.log";

const AUDIT_POLICY: &str = r#"{
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}]
}"#;

/// Tells the directories of one process apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl ApiServer {
    /// Starts one of its own, building etcd, kube-apiserver and kubectl first when they are missing.
    pub fn start() -> Result<Self> {
        Self::start_with(Disk::Ignored)
    }

    /// Starts one whose etcd waits for the disk, as in production: for measurements.
    pub fn start_durable() -> Result<Self> {
        Self::start_with(Disk::Waited)
    }

    fn start_with(disk: Disk) -> Result<Self> {
        let checkout = Checkout::here();
        components::build(&checkout)?;
        let home = checkout.artefacts().join("api");
        sweep(&home);
        let mut last = None;
        // Somebody else may take a port between our choice and the server's start.
        for _ in 0..3 {
            // A directory of its own for each attempt: one that fails takes its own away.
            let dir = home.join(format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
            match Self::try_start(&checkout, &dir, disk) {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn try_start(checkout: &Checkout, dir: &Path, disk: Disk) -> Result<Self> {
        let users = [("admin", "system:masters"), (OPERATOR, ACCOUNT_GROUPS), (AGENT, ACCOUNT_GROUPS)];
        let pki = Pki::ensure(&dir.join("pki"), &users)?;
        let ports = free_ports()?;
        let kubeconfig = dir.join("kubeconfig");
        pki.kubeconfig(&kubeconfig, "admin", &format!("https://127.0.0.1:{}", ports.api))?;
        let mut server = Self {
            dir: dir.to_path_buf(),
            kubectl: Kubectl::new(checkout, &kubeconfig),
            pki: pki.clone(),
            ports,
            children: Vec::new(),
        };
        let bin = checkout.bin();
        let policy = dir.join("audit-policy.json");
        layout::write(&policy, AUDIT_POLICY)?;
        let mut api_server = control_plane::lone_api_server(&bin, &pki, ports);
        api_server.arg("--audit-policy-file").arg(&policy).arg("--audit-log-path").arg(dir.join(AUDIT_LOG));
        let etcd = match disk {
            Disk::Ignored => control_plane::etcd(&bin, &dir.join("etcd"), ports),
            Disk::Waited => control_plane::durable_etcd(&bin, &dir.join("etcd"), ports),
        };
        for (name, command) in [("etcd", etcd), ("kube-apiserver", api_server)] {
            server.start_child(name, command)?;
        }
        wait::until("the API server", Duration::from_mins(1), || server.answers(dir))?;
        Ok(server)
    }

    fn answers(&mut self, dir: &Path) -> Result<Option<()>> {
        for (_, child) in &mut self.children {
            if child.try_wait()?.is_some() {
                let logs =
                    ["etcd", "kube-apiserver"].map(|name| process::tail(&dir.join(format!("{name}.log")), 3));
                anyhow::bail!(wait::Hopeless(format!("a process ended: {}", logs.join("\n"))));
            }
        }
        self.kubectl.run(&["get", "--raw", "/readyz"]).map(|_| Some(()))
    }

    fn start_child(&mut self, name: &'static str, command: Command) -> Result<()> {
        let log = fs::File::create(self.dir.join(format!("{name}.log"))).context("create a log")?;
        self.children.push((name, spawn(command, log).with_context(|| format!("start {name}"))?));
        Ok(())
    }

    /// Adds the controllers that remove what belongs to objects that are gone.
    pub fn start_controllers(&mut self) -> Result<()> {
        let bin = Checkout::here().bin();
        let command = control_plane::removing_controllers(&bin, &self.pki, self.kubectl.kubeconfig());
        self.start_child("kube-controller-manager", command)
    }

    /// Writes a kubeconfig of an account that has only the rights RBAC gives it, and returns its path.
    pub fn account(&self, account: Account) -> Result<PathBuf> {
        let (user, file) = match account {
            Account::Operator => (OPERATOR, "operator.kubeconfig"),
            Account::Agent => (AGENT, "agent.kubeconfig"),
        };
        let path = self.dir.join(file);
        self.pki.kubeconfig(&path, user, &format!("https://127.0.0.1:{}", self.ports.api))?;
        Ok(path)
    }

    /// Where etcd answers clients, and serves its metrics.
    pub fn etcd(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.etcd).into()
    }

    /// The pids of `etcd`, `kube-apiserver` and, if started, `kube-controller-manager`.
    pub fn pids(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.children.iter().map(|(name, child)| (*name, child.id()))
    }

    /// kubectl with all rights.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// A kubeconfig file with all rights.
    pub fn kubeconfig(&self) -> &Path {
        self.kubectl.kubeconfig()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for (_, child) in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = layout::remove(&self.dir);
    }
}

/// Starts a process that cannot outlive this one. The kernel ends it with the *thread* that started it, so that is one
/// which lasts: a test's own thread ends with the test.
fn spawn(command: Command, log: fs::File) -> Result<Child> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        let spawned =
            log.try_clone().and_then(|copy| bound.stdin(Stdio::null()).stdout(copy).stderr(log).spawn());
        if sender.send(spawned).is_ok() {
            loop {
                thread::park();
            }
        }
    });
    Ok(receiver.recv().context("the starting thread ended")??)
}

fn free_ports() -> Result<Ports> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port");
    // All at once, so that they differ.
    let sockets = [listen()?, listen()?, listen()?];
    let mut ports = [0; 3];
    for (port, socket) in ports.iter_mut().zip(&sockets) {
        *port = socket.local_addr()?.port();
    }
    ensure!(ports.iter().all(|port| *port != 0), "the kernel gave no port");
    Ok(Ports { etcd: ports[0], etcd_peer: ports[1], api: ports[2] })
}

/// Removes what processes left that were killed.
fn sweep(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.split('-').next()?.parse().ok());
        if pid.is_some_and(|pid| !process::alive(pid)) {
            let _ = layout::remove(&entry.path());
        }
    }
}

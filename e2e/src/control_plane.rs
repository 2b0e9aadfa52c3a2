//! etcd, API server, controller manager and scheduler: which flags they get. Where they run is the caller's choice.

use std::path::Path;
use std::process::Command;

use crate::layout::{API_ADDRESS, SERVICE_CIDR};
use crate::pki::Pki;

/// Where etcd and the API server listen.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// etcd, for clients.
    pub etcd: u16,
    /// etcd, for its (absent) peers.
    pub etcd_peer: u16,
    /// The API server.
    pub api: u16,
}

/// etcd on loopback. Nothing in it outlives the cluster, so it need not wait for the disk.
pub fn etcd(bin: &Path, data: &Path, ports: Ports) -> Command {
    let mut command = durable_etcd(bin, data, ports);
    command.arg("--unsafe-no-fsync");
    command
}

/// etcd on loopback as it is run in production: each write reaches the disk before it is acknowledged.
pub fn durable_etcd(bin: &Path, data: &Path, ports: Ports) -> Command {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
    let mut command = Command::new(bin.join("etcd"));
    command.arg("--data-dir").arg(data).args(["--name", "local", "--log-level", "warn"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("local={peer}")]);
    command
}

fn api_server(bin: &Path, pki: &Pki, ports: Ports) -> Command {
    let mut command = Command::new(bin.join("kube-apiserver"));
    command.arg(format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd));
    command.arg(format!("--secure-port={}", ports.api));
    command.arg(format!("--service-cluster-ip-range={SERVICE_CIDR}"));
    command.args(["--allow-privileged=true", "--service-account-issuer=https://kubernetes.default.svc"]);
    for (flag, file) in [
        ("token-auth-file", "tokens.csv"),
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("service-account-key-file", "service-accounts.pub"),
        ("service-account-signing-key-file", "service-accounts.key"),
    ] {
        command.arg(format!("--{flag}={}", pki.file(file).display()));
    }
    command
}

/// The API server of a cluster with nodes.
pub fn cluster_api_server(bin: &Path, pki: &Pki, ports: Ports) -> Command {
    let mut command = api_server(bin, pki, ports);
    command.arg("--bind-address=0.0.0.0").arg(format!("--advertise-address={API_ADDRESS}"));
    command.args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"]);
    // Node names do not resolve: exec and logs go to addresses.
    command.args(["--kubelet-preferred-address-types=InternalIP", "--endpoint-reconciler-type=lease"]);
    command.arg(format!("--kubelet-client-certificate={}", pki.file("kubelet-client.crt").display()));
    command.arg(format!("--kubelet-client-key={}", pki.file("kubelet-client.key").display()));
    aggregation(&mut command, pki);
    command
}

/// APIs and webhooks that pods serve. They are reached at the pods themselves: nothing translates addresses of Services here.
fn aggregation(command: &mut Command, pki: &Pki) {
    command.arg("--enable-aggregator-routing=true");
    command.args([
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
    ]);
    command.arg("--requestheader-extra-headers-prefix=X-Remote-Extra-");
    // The CA signs everybody: only this one may speak for others.
    command.arg("--requestheader-allowed-names=apiserver-kubelet-client");
    command.arg(format!("--requestheader-client-ca-file={}", pki.file("ca.crt").display()));
    command.arg(format!("--proxy-client-cert-file={}", pki.file("kubelet-client.crt").display()));
    command.arg(format!("--proxy-client-key-file={}", pki.file("kubelet-client.key").display()));
}

/// An API server without any node or controller. Nobody would make service accounts, so pods need none.
pub fn lone_api_server(bin: &Path, pki: &Pki, ports: Ports) -> Command {
    let mut command = api_server(bin, pki, ports);
    command.args([
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
    ]);
    command.args(["--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"]);
    command
}

/// The controller manager. One credential for all controllers: each one's own would cost four seconds until the first
/// pod can be made.
pub fn controller_manager(bin: &Path, pki: &Pki, kubeconfig: &Path) -> Command {
    let mut command = controllers(bin, pki, kubeconfig, "*,-node-ipam-controller");
    command.arg("--node-monitor-grace-period=20s");
    command
}

/// Only the controllers that remove what belongs to objects that are gone: garbage collection and namespaces. The
/// others would take nodes without a kubelet for broken ones.
pub fn removing_controllers(bin: &Path, pki: &Pki, kubeconfig: &Path) -> Command {
    let mut command = controllers(bin, pki, kubeconfig, "garbage-collector-controller,namespace-controller");
    command.arg("--secure-port=0");
    command
}

fn controllers(bin: &Path, pki: &Pki, kubeconfig: &Path, names: &str) -> Command {
    let mut command = Command::new(bin.join("kube-controller-manager"));
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        command.arg(format!("--{flag}={}", kubeconfig.display()));
    }
    for (flag, file) in [
        ("service-account-private-key-file", "service-accounts.key"),
        ("root-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
    ] {
        command.arg(format!("--{flag}={}", pki.file(file).display()));
    }
    command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    command.arg(format!("--controllers={names}"));
    command
}

/// The scheduler.
pub fn scheduler(bin: &Path, kubeconfig: &Path) -> Command {
    let mut command = Command::new(bin.join("kube-scheduler"));
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        command.arg(format!("--{flag}={}", kubeconfig.display()));
    }
    command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    command
}

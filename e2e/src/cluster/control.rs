//! The control plane of a cluster with nodes: who may call it, and its processes in their network namespace.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Cluster, Local};
use crate::control_plane::{self, Ports};
use crate::layout::{API_PORT, Layout, MAX_NODES};
use crate::node::kubelet_user;
use crate::pki::Pki;
use crate::{kube_ovn, multus, namespaces, registry, relay, wait};

/// etcd and the API server have a network namespace to themselves, so ports can be fixed.
const PORTS: Ports = Ports { etcd: 2379, etcd_peer: 2380, api: API_PORT };

/// What the process of etcd is called.
pub(super) const ETCD: &str = "etcd";

/// What the API server's process is called.
pub(super) const API_SERVER: &str = "kube-apiserver";

/// The cluster's certificates and tokens; made when they are missing.
pub(super) fn pki(local: &Local) -> Result<Pki> {
    let users = users(&local.layout);
    let users: Vec<(&str, &str)> = users.iter().map(|(user, groups)| (user.as_str(), *groups)).collect();
    Pki::ensure(&local.layout.pki(), &users)
}

/// Everyone who calls the API, with groups.
fn users(layout: &Layout) -> Vec<(String, &'static str)> {
    let mut users = vec![
        ("admin".to_owned(), "system:masters"),
        ("system:kube-controller-manager".to_owned(), ""),
        ("system:kube-scheduler".to_owned(), ""),
        ("system:kube-proxy".to_owned(), "system:node-proxier"),
        (multus::USER.to_owned(), ""),
        (kube_ovn::USER.to_owned(), "system:masters"),
    ];
    users.extend(layout.nodes(MAX_NODES).iter().map(|node| (kubelet_user(&node.name()), "system:nodes")));
    users
}

/// Starts etcd, the API server and the way to it, unless they run, and waits for an answer.
pub(super) fn start_api(local: &Local, cluster: &Cluster, pki: &Pki) -> Result<()> {
    let (layout, processes) = (&local.layout, &local.processes);
    namespaces::ensure_control_plane(layout)?;
    let bin = layout.checkout.bin();
    let netns = layout.netns("cp");
    let start = |name: &str, command: &std::process::Command| {
        let mut inside = namespaces::in_netns(&netns);
        inside.arg(command.get_program()).args(command.get_args());
        processes.start(name, &inside)
    };
    start(ETCD, &control_plane::etcd(&bin, &layout.dir().join("etcd"), PORTS))?;
    start(API_SERVER, &control_plane::cluster_api_server(&bin, pki, PORTS))?;
    registry::ensure(layout, processes)?;
    let port = relay::ensure(&relay_program()?, layout, processes)?;
    pki.kubeconfig(&layout.kubeconfig(), "admin", &format!("https://127.0.0.1:{port}"))?;
    wait::until("the API server", Duration::from_mins(1), || {
        for name in [ETCD, API_SERVER] {
            processes.expect_running(name)?;
        }
        if !relay::open(port) {
            return Ok(None);
        }
        cluster.kubectl().run(&["get", "--raw", "/readyz"]).map(|_| Some(()))
    })
}

/// Starts controller manager and scheduler, unless they run.
pub(super) fn start_controllers(local: &Local, pki: &Pki) -> Result<()> {
    let layout = &local.layout;
    let bin = layout.checkout.bin();
    let server = format!("https://127.0.0.1:{API_PORT}");
    let admin = pki.file("admin.kubeconfig");
    pki.kubeconfig(&admin, "admin", &server)?;
    let scheduler = pki.file("scheduler.kubeconfig");
    pki.kubeconfig(&scheduler, "system:kube-scheduler", &server)?;
    for (name, command) in [
        ("kube-controller-manager", control_plane::controller_manager(&bin, pki, &admin)),
        ("kube-scheduler", control_plane::scheduler(&bin, &scheduler)),
    ] {
        let mut inside = namespaces::in_netns(&layout.netns("cp"));
        inside.arg(command.get_program()).args(command.get_args());
        local.processes.start(name, &inside)?;
    }
    Ok(())
}

/// The command that contains the relay: this program, or the one built next to this test.
fn relay_program() -> Result<PathBuf> {
    const NAME: &str = "macvtap-cluster";
    let own = env::current_exe().context("find this program")?;
    if own.file_name().is_some_and(|name| name == NAME) {
        return Ok(own);
    }
    let near = own.ancestors().skip(1).take(2).map(|dir| dir.join(NAME)).find(|path| path.exists());
    near.context("macvtap-cluster is not built; run: cargo build -p e2e")
}

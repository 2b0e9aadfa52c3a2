//! A cluster as a value: brought up, repaired and taken down by its name.

mod control;
mod options;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::Signal;

use crate::images::{self, Image};
use crate::kube_ovn::{self, KubeOvn};
use crate::layout::{Checkout, Layout, MAX_NODES};
use crate::pki::Pki;
use crate::process::Processes;
use crate::progress::say;
use crate::{Kubectl, Node, components, install, kubevirt, layout, multus, namespaces, prerequisites};
use crate::{registry, traces};

pub use options::{Multus, Options};

/// A cluster to work with: a local one, or one that somebody else runs.
#[derive(Clone, Debug)]
pub struct Cluster {
    checkout: Checkout,
    kubectl: Kubectl,
    local: Option<Local>,
}

/// What only a local cluster has.
#[derive(Clone, Debug)]
struct Local {
    layout: Layout,
    processes: Processes,
    nodes: Vec<Node>,
}

impl Local {
    fn new(layout: Layout, options: Options) -> Self {
        let processes = Processes::new(layout.run(), layout.logs(), &layout.id);
        let nodes = layout.nodes(options.nodes).into_iter().map(|node| {
            let kind = options.kind(node.index);
            Node::new(node, processes.clone(), kind)
        });
        let nodes = nodes.collect();
        Self { layout, processes, nodes }
    }
}

impl Cluster {
    /// Brings the cluster up, or repairs it: what runs stays, what is missing is started. Builds first what it needs.
    pub fn up(name: &str, options: Options) -> Result<Self> {
        prerequisites::check_root()?;
        ensure!((1..=MAX_NODES).contains(&options.nodes), "a cluster has 1 or {MAX_NODES} nodes");
        let layout = Layout::new(name)?;
        prerequisites::ensure(&layout.checkout)?;
        components::build(&layout.checkout)?;
        if options.field {
            components::build_field(&layout.checkout)?;
        }
        if options.kube_ovn {
            kube_ovn::build(&layout.checkout)?;
        }
        if options.kubevirt {
            kubevirt::build(&layout.checkout)?;
        }
        images::build(&layout.checkout, &images::BASE)?;
        let _lock = lock(&layout)?;
        let options = match read_options(&layout) {
            Some(old) if intact(&layout, old) => old.with(name, options)?,
            // Remains of an interrupted start, or of a machine that was switched off.
            _ => {
                traces::remove(&layout)?;
                options
            }
        };
        layout::write(&layout.state(), serde_json::to_string_pretty(&options)?)?;
        start(&Local::new(layout, options), options)
    }

    /// The local cluster of that name, which must be up.
    pub fn open(name: &str) -> Result<Self> {
        let layout = Layout::new(name)?;
        let options = read_options(&layout).filter(|options| intact(&layout, *options));
        let options = options.with_context(|| {
            format!("there is no cluster {name:?}; start it with: macvtap-cluster up --name {name}")
        })?;
        Ok(Self::local(Local::new(layout, options)))
    }

    /// Takes the cluster down and leaves nothing of it, in whatever state it is.
    pub fn down(name: &str) -> Result<()> {
        prerequisites::check_root()?;
        let layout = Layout::new(name)?;
        let _lock = lock(&layout)?;
        traces::remove(&layout)
    }

    /// The cluster that tests use: the one behind `KUBECONFIG`, when that is set, with the product already installed;
    /// else the local cluster of [`Cluster::tests`] with two nodes, brought up with the product as it is in this tree. With
    /// `MACVTAP_TEST_REUSE=1` that cluster is taken as it is and nothing is built: for those who work on a test.
    pub fn from_env() -> Result<Self> {
        Self::from_env_with(Options::default())
    }

    /// As [`Cluster::from_env`], with a local cluster of these options.
    pub fn from_env_with(options: Options) -> Result<Self> {
        match env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(path) => Self::existing(&PathBuf::from(path)),
            None if env::var_os("MACVTAP_TEST_REUSE").is_some_and(|value| value == "1") => {
                Self::open(&Self::tests())
            }
            None => Self::with_product(&Self::tests(), options),
        }
    }

    /// The name of the tests' local cluster: `test`, unless `MACVTAP_TEST_CLUSTER` says otherwise, for those who run
    /// tests of one checkout side by side.
    pub fn tests() -> String {
        env::var("MACVTAP_TEST_CLUSTER")
            .ok()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "test".to_owned())
    }

    /// [`Cluster::from_env`], once per process. Nothing when a local cluster would be needed and is not
    /// [permitted](Self::permitted).
    pub fn shared() -> Result<Option<&'static Self>> {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let foreign = env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
        if !foreign && !Self::permitted()? {
            return Ok(None);
        }
        let shared = SHARED.get_or_init(|| Self::from_env().map_err(|error| format!("{error:#}")));
        shared.as_ref().map(Some).map_err(|error| anyhow!("the shared cluster did not start: {error}"))
    }

    /// Whether this user may run a local cluster. An error where `REQUIRE_ROOT=1` is set: a test that was left out must
    /// not look like one that passed.
    pub fn permitted() -> Result<bool> {
        if rustix::process::geteuid().is_root() {
            return Ok(true);
        }
        ensure!(
            env::var_os("REQUIRE_ROOT").is_none_or(|value| value != "1"),
            "REQUIRE_ROOT=1, but this is not root"
        );
        say("skipped: needs root");
        Ok(false)
    }

    /// A cluster that somebody else runs.
    pub fn existing(kubeconfig: &Path) -> Result<Self> {
        let checkout = Checkout::here();
        let kubectl = Kubectl::new(&checkout, kubeconfig);
        kubectl
            .run(&["version"])
            .with_context(|| format!("reach the cluster of {}", kubeconfig.display()))?;
        say(format_args!("using the cluster of KUBECONFIG={}", kubeconfig.display()));
        Ok(Self { checkout, kubectl, local: None })
    }

    /// A local cluster with all images and the chart installed, at the state of this tree.
    pub fn with_product(name: &str, options: Options) -> Result<Self> {
        let checkout = Checkout::here();
        prerequisites::ensure(&checkout)?;
        let images = images::build(&checkout, &images::ALL)?;
        let cluster = Self::up(name, options)?;
        cluster.install(&images)?;
        Ok(cluster)
    }

    /// Installs or upgrades the chart with these images and waits until it is ready.
    pub fn install(&self, images: &[Image]) -> Result<()> {
        install::product(self, &[])?;
        install::restart_changed(self, images)
    }

    fn local(local: Local) -> Self {
        let kubectl = Kubectl::new(&local.layout.checkout, &local.layout.kubeconfig());
        Self { checkout: local.layout.checkout.clone(), kubectl, local: Some(local) }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.local.as_ref().map_or("existing", |local| &local.layout.name)
    }

    /// The tree it was made from.
    pub fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// kubectl with all rights the kubeconfig gives.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Its names and paths, if it is local.
    pub fn layout(&self) -> Option<&Layout> {
        self.local.as_ref().map(|local| &local.layout)
    }

    /// Its daemons, if it is local.
    pub fn processes(&self) -> Option<&Processes> {
        self.local.as_ref().map(|local| &local.processes)
    }

    /// Kills the API server at once: how a failed control plane looks to the nodes. [`Cluster::start_api_server`] ends it.
    pub fn kill_api_server(&self) -> Result<()> {
        self.own()?.processes.stop(control::API_SERVER, Signal::KILL, Duration::from_secs(5))
    }

    /// Kills etcd at once. [`Cluster::start_api_server`] ends it.
    pub fn kill_etcd(&self) -> Result<()> {
        self.own()?.processes.stop(control::ETCD, Signal::KILL, Duration::from_secs(5))
    }

    /// Starts etcd and the API server, unless they run, and waits until they answer.
    pub fn start_api_server(&self) -> Result<()> {
        let local = self.own()?;
        control::start_api(local, self, &control::pki(local)?)
    }

    fn own(&self) -> Result<&Local> {
        self.local.as_ref().context("this needs the processes of the cluster, which only a local one gives")
    }

    /// Its nodes, none if it is not local.
    pub fn nodes(&self) -> &[Node] {
        self.local.as_ref().map_or(&[], |local| &local.nodes)
    }

    /// kube-ovn on its nodes, if it is local.
    pub fn kube_ovn(&self) -> Option<KubeOvn<'_>> {
        let local = self.local.as_ref()?;
        Some(KubeOvn::new(&self.checkout, &local.processes, &local.nodes))
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let Some(local) = &self.local else {
            bail!("this needs access to the processes of node {name}, which only a local cluster gives")
        };
        local
            .nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// Imports an image archive into every node.
    pub fn load(&self, archive: &Path) -> Result<()> {
        ensure!(self.local.is_some(), "images can be loaded into a local cluster only");
        self.nodes().iter().try_for_each(|node| node.load(archive).map(drop))
    }

    /// Runs `test`; when it fails, collects what helps and adds it to the error.
    pub fn explain<T>(&self, test: impl FnOnce() -> Result<T>) -> Result<T> {
        test().map_err(|error| match self.diagnose() {
            Ok(found) => error.context(format!("{found}the failure")),
            Err(other) => error.context(format!("(no diagnosis: {other:#})")),
        })
    }

    /// Collects logs and states into a directory below `target/e2e/diagnose`; gives the most telling part.
    pub fn diagnose(&self) -> Result<String> {
        crate::diagnose::collect(self).map(|(_, text)| text)
    }
}

/// One `up` or `down` of a cluster at a time.
fn lock(layout: &Layout) -> Result<fs::File> {
    layout.checkout.lock(&format!("cluster-{}", layout.name))
}

fn read_options(layout: &Layout) -> Option<Options> {
    serde_json::from_str(&fs::read_to_string(layout.state()).ok()?).ok()
}

/// Whether namespaces and mounts are there: they cannot be repaired under running processes.
fn intact(layout: &Layout, options: Options) -> bool {
    let processes = Processes::new(layout.run(), layout.logs(), &layout.id);
    let held = |node: &layout::NodeLayout| processes.pid(&namespaces::holder_name(node)).is_some();
    let netns = |part: &str| namespaces::path(&layout.netns(part)).exists();
    let nodes = layout.nodes(options.nodes);
    netns("sw") && netns("cp") && nodes.iter().all(|node| netns(&node.name()) && held(node))
}

fn start(local: &Local, options: Options) -> Result<Cluster> {
    let start = Instant::now();
    let pki = control::pki(local)?;
    namespaces::ensure_switch(&local.layout)?;
    let cluster = Cluster::local(local.clone());
    thread::scope(|scope| {
        let nodes: Vec<_> =
            local.nodes.iter().map(|node| scope.spawn(|| start_runtime(node, options, &pki))).collect();
        let api = control::start_api(local, &cluster, &pki);
        for node in nodes {
            node.join().map_err(|_| anyhow!("starting a node panicked"))??;
        }
        api
    })?;
    say(format_args!("  API server and containerd ready after {:.1} s", start.elapsed().as_secs_f64()));
    for node in &local.nodes {
        node.ensure_kubelet(&pki)?;
        if options.multus == Multus::Thick {
            multus::install_thick(node, &pki, &local.processes)?;
        }
    }
    control::start_controllers(local, &pki)?;
    if let Some(node) = local.nodes.first() {
        registry::publish(node)?;
    }
    multus::apply(cluster.kubectl())?;
    wait_ready(&cluster, options)?;
    say(format_args!("  nodes Ready after {:.1} s", start.elapsed().as_secs_f64()));
    if let Some(kube_ovn) = cluster.kube_ovn().filter(|_| options.kube_ovn) {
        kube_ovn.ensure(cluster.kubectl(), &pki)?;
        say(format_args!("  kube-ovn ready after {:.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(cluster)
}

fn start_runtime(node: &Node, options: Options, pki: &Pki) -> Result<()> {
    if options.multus == Multus::Thin {
        // Before containerd, which then sees the final configuration at once.
        multus::install_thin(node, pki)?;
    }
    node.ensure_runtime(options.kubevirt).with_context(|| format!("start node {}", node.name()))
}

fn wait_ready(cluster: &Cluster, options: Options) -> Result<()> {
    let kubectl = cluster.kubectl();
    for node in cluster.nodes() {
        if options.multus == Multus::Thick {
            multus::wait_thick(node)?;
        }
        let resource = format!("node/{}", node.name());
        kubectl.wait_for("", &resource, "condition=Ready", Duration::from_mins(1)).with_context(|| {
            let processes = cluster.processes();
            let log =
                processes.map(|all| all.tail(&format!("{}-kubelet", node.name()), 10)).unwrap_or_default();
            format!("the last lines of its kubelet:\n{log}")
        })?;
        node.wait_services()?;
    }
    let kind = "crd/network-attachment-definitions.k8s.cni.cncf.io";
    kubectl.wait_for("", kind, "condition=Established", Duration::from_secs(30))?;
    // Without it no pod can be made.
    kubectl.wait_until("default", "serviceaccount/default", Duration::from_secs(30), |_| Some(()))
}

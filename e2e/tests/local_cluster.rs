//! The local cluster itself: nothing of it meets another one, and nothing of it stays.

#![expect(clippy::print_stdout, reason = "what was left out belongs in the test's output")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::layout::Layout;
use e2e::{ApiServer, Cluster, Multus, Options, images, process, traces, wait};

/// A cluster that goes with the test, whatever the test says. Its name is this process' own.
struct Own {
    name: String,
}

impl Own {
    /// Nothing without root, an error where root is required.
    fn new(suffix: &str) -> Result<Option<Self>> {
        let name = format!("t{}-{suffix}", std::process::id());
        Ok(Cluster::permitted()?.then_some(Self { name }))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = Cluster::down(&self.name) {
            println!("cluster {} stays: {error:#}", self.name);
        }
    }
}

fn pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{k8s.v1.cni.cncf.io/networks: second}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, image: {}, imagePullPolicy: Never, command: [sleep, infinity]}}
",
        images::reference("busybox")
    )
}

const SECOND_NETWORK: &str = r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: second}
spec:
  config: '{"cniVersion": "0.4.0", "name": "second", "type": "bridge", "bridge": "br9",
            "ipam": {"type": "host-local", "subnet": "10.79.9.0/24"}}'
"#;

/// A pod on each node, each with a second interface, that reach each other; the first also reaches the API.
fn works(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.apply(SECOND_NETWORK)?;
    let names: Vec<String> = cluster.nodes().iter().map(e2e::Node::name).collect();
    for node in &names {
        kubectl.apply(&pod(&format!("p-{node}"), node))?;
    }
    let mut addresses = Vec::new();
    for node in &names {
        let ready = kubectl.wait_until("default", &format!("pod/p-{node}"), Duration::from_secs(40), |pod| {
            let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
            pod["status"]["podIP"].as_str().filter(|_| ready).map(str::to_owned)
        });
        addresses.push(ready?);
        let links = kubectl.exec("default", &format!("p-{node}"), &["ip", "-4", "-o", "addr"])?;
        ensure!(links.contains("net1") && links.contains("10.79.9."), "no second interface: {links}");
    }
    let first = format!("p-{}", names.first().context("a cluster has nodes")?);
    for address in &addresses {
        kubectl.exec("default", &first, &["ping", "-c", "1", "-W", "5", address])?;
    }
    kubectl.exec("default", &first, &["sh", "-c", "nc -w 5 $KUBERNETES_SERVICE_HOST 443 </dev/null"])?;
    Ok(())
}

fn leaves_nothing(name: &str) -> Result<()> {
    Cluster::down(name)?;
    let left = traces::find(&Layout::new(name)?)?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

#[test]
fn two_clusters_side_by_side_work_and_leave_nothing() -> Result<()> {
    let (Some(a), Some(b)) = (Own::new("a")?, Own::new("b")?) else { return Ok(()) };
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| Cluster::up(&a.name, Options::default()));
        let second = scope.spawn(|| {
            Cluster::up(&b.name, Options { nodes: 1, multus: Multus::Thick, ..Options::default() })
        });
        (first.join().unwrap(), second.join().unwrap())
    });
    let (first, second) = (first?, second?);
    first.explain(|| works(&first))?;
    second.explain(|| works(&second))?;

    leaves_nothing(&a.name)?;
    second.explain(|| works(&second)).context("the other cluster is gone")?;
    leaves_nothing(&b.name)
}

#[test]
fn a_start_that_is_killed_half_way_is_cleaned_up() -> Result<()> {
    let Some(own) = Own::new("killed")? else { return Ok(()) };
    // What the start would build first is not what is interrupted here.
    Cluster::up(&own.name, Options { nodes: 1, ..Options::default() })?;
    leaves_nothing(&own.name)?;

    let layout = Layout::new(&own.name)?;
    // A start leaves these one after the other; it is killed as soon as each one is there.
    for milestone in
        ["run/etcd.pid", "run/relay.pid", "run/n1-containerd.pid", "loaded", "run/n1-kubelet.pid"]
    {
        let file = match milestone {
            "loaded" => layout.dir().join("nodes/n1/loaded"),
            other => layout.dir().join(other),
        };
        let mut up = Command::new(env!("CARGO_BIN_EXE_macvtap-cluster"));
        up.args(["up", "--nodes", "1", "--name", &own.name]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut up = up.process_group(0).spawn()?;
        let reached = wait::until(milestone, Duration::from_secs(30), || Ok(file.exists().then_some(())));
        up.kill()?;
        up.wait()?;
        reached?;
        ensure!(!traces::find(&layout)?.is_empty(), "killed too early to leave anything at {milestone}");
        leaves_nothing(&own.name).with_context(|| format!("killed at {milestone}"))?;
    }
    Ok(())
}

#[test]
fn up_repairs_what_died() -> Result<()> {
    let Some(own) = Own::new("repair")? else { return Ok(()) };
    let options = Options { nodes: 1, ..Options::default() };
    let cluster = Cluster::up(&own.name, options)?;
    let kubeconfig = std::fs::read(cluster.kubectl().kubeconfig())?;
    let processes = cluster.processes().context("it is local")?;
    let pid = |name: &str| processes.pid(name).with_context(|| format!("{name} does not run"));
    for name in ["etcd", "kube-apiserver", "relay", "kube-scheduler", "n1-containerd", "n1-kubelet"] {
        process::send(pid(name)?, rustix::process::Signal::KILL);
    }
    let cluster = Cluster::up(&own.name, options)?;
    cluster.explain(|| works(&cluster))?;
    ensure!(
        std::fs::read(cluster.kubectl().kubeconfig())? == kubeconfig,
        "the kubeconfig file is another one"
    );

    // Without its mounts a node cannot be repaired, so all of it starts again.
    process::send(pid("n1-mounts")?, rustix::process::Signal::KILL);
    let cluster = Cluster::up(&own.name, options)?;
    cluster.explain(|| works(&cluster))
}

#[test]
fn a_node_tells_the_processes_of_a_pod() -> Result<()> {
    let Some(own) = Own::new("pids")? else { return Ok(()) };
    let cluster = Cluster::up(&own.name, Options::default())?;
    cluster.explain(|| works(&cluster))?;
    for node in cluster.nodes() {
        let pod = format!("p-{}", node.name());
        let pids = node.container_pids("default", &pod)?;
        ensure!(pids.len() == 1, "{pod} has one container: {pids:?}");
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        let pause = node.pause_pid("default", &pod)?;
        ensure!(
            namespace(pids[0])? == namespace(pause)?,
            "container and sandbox are in one network namespace"
        );
        process::send(pause, rustix::process::Signal::KILL);
        let again = || Ok(node.pause_pid("default", &pod).ok().filter(|pid| *pid != pause));
        wait::until("the pod's new sandbox", Duration::from_secs(40), again)?;
    }
    Ok(())
}

#[test]
fn an_api_server_alone_serves_and_ends_with_its_value() -> Result<()> {
    let server = ApiServer::start()?;
    server.kubectl().apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: v}}")?;
    ensure!(server.kubectl().get("default", "configmap/a")?["data"]["k"] == "v");
    let kubeconfig = server.kubeconfig().to_path_buf();
    drop(server);
    ensure!(!kubeconfig.exists(), "its files are gone");
    Ok(())
}

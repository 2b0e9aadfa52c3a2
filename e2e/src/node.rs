//! One node: containerd, kubelet and kube-proxy in the node's namespaces, and what a test does to them.

mod config;
mod reboot;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::layout::{self, API_ADDRESS, API_PORT, API_SERVICE, NodeLayout};
use crate::pki::Pki;
use crate::process::{self, Processes};
use crate::{cgroups, images, namespaces, wait};

/// Plugins of the pod network and of the tests' own networks.
const CNI_PLUGINS: [&str; 6] = ["bridge", "host-local", "loopback", "portmap", "static", "tuning"];

/// The namespace that the kubelet's containers have in containerd.
const CRI: &str = "k8s.io";

/// A node of a local cluster.
#[derive(Clone, Debug)]
pub struct Node {
    layout: NodeLayout,
    processes: Processes,
    kind: Kind,
}

/// What a node is made of. Users have each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// containerd 2.x, built here, with Debian's runc.
    Current,
    /// containerd 1.6 and runc, both Debian's. It notices a new CNI configuration in another way.
    Debian,
    /// containerd 2.x that keeps network namespaces in its state directory, a runc that knows user namespaces, and a
    /// kubelet whose root directory is elsewhere.
    Moved,
}

impl Node {
    /// The node with these names. Nothing is started.
    pub fn new(layout: NodeLayout, processes: Processes, kind: Kind) -> Self {
        Self { layout, processes, kind }
    }

    /// Its name in the API.
    pub fn name(&self) -> String {
        self.layout.name()
    }

    /// Its names, paths and addresses.
    pub fn layout(&self) -> &NodeLayout {
        &self.layout
    }

    fn daemon(&self, part: &str) -> String {
        format!("{}-{part}", self.name())
    }

    fn runtime_bin(&self) -> PathBuf {
        match self.kind {
            Kind::Current | Kind::Moved => self.layout.cluster.checkout.bin(),
            Kind::Debian => self.layout.cluster.checkout.debian().join("usr/bin"),
        }
    }

    fn runc(&self) -> PathBuf {
        match self.kind {
            Kind::Current | Kind::Debian => self.layout.cluster.checkout.debian().join("usr/sbin/runc"),
            Kind::Moved => self.layout.cluster.checkout.bin().join("runc"),
        }
    }

    /// The kubelet's root directory. That of device plugins stays where it is.
    pub fn kubelet_root(&self) -> &'static str {
        match self.kind {
            Kind::Current | Kind::Debian => "/var/lib/kubelet",
            Kind::Moved => "/var/lib/moved/kubelet",
        }
    }

    fn holder(&self) -> Result<u32> {
        let holder = self.processes.pid(&namespaces::holder_name(&self.layout));
        holder.with_context(|| {
            format!("node {} is not running; start it with: macvtap-cluster up", self.name())
        })
    }

    /// The node's root directory as this process reaches it, with all that is mounted there.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root", self.holder()?)))
    }

    /// A command that will run in the node's namespaces; append the program.
    pub fn command(&self) -> Result<Command> {
        Ok(namespaces::in_node(self.holder()?))
    }

    /// As [`Node::command`], for [`Node::start`].
    fn daemon_command(&self) -> Result<Command> {
        Ok(namespaces::daemon_in_node(self.holder()?))
    }

    fn start(&self, name: &str, command: &Command) -> Result<()> {
        let namespace = namespaces::own_processes(self.holder()?);
        self.processes.start_in(name, command, namespace.as_deref())
    }

    /// Runs a program in the node's namespaces and gives what it printed.
    pub fn exec(&self, program: &[&str]) -> Result<String> {
        process::output(self.command()?.args(program))
    }

    /// The pid of one of its daemons, `containerd`, `kubelet` or `kube-proxy`, if it runs.
    pub fn daemon_pid(&self, part: &str) -> Option<u32> {
        self.processes.pid(&self.daemon(part))
    }

    /// Makes namespaces and cgroup and starts containerd with the images, as far as they are missing. A new node has a
    /// process namespace of its own if it should.
    pub fn ensure_runtime(&self, own_processes: bool) -> Result<()> {
        namespaces::ensure_node(&self.layout)?;
        cgroups::create(&self.layout.cgroup())?;
        namespaces::ensure_mounts(&self.processes, &self.layout, own_processes)?;
        self.install_cni_plugins()?;
        self.start_containerd()?;
        for archive in images::archives(&self.layout.cluster.checkout)? {
            self.load(&archive)?;
        }
        Ok(())
    }

    /// Starts kubelet and kube-proxy, unless they run.
    pub fn ensure_kubelet(&self, pki: &Pki) -> Result<()> {
        let server = format!("https://{API_ADDRESS}:{API_PORT}");
        let dir = self.layout.dir();
        pki.kubeconfig(&dir.join("kubelet.kubeconfig"), &kubelet_user(&self.name()), &server)?;
        pki.kubeconfig(&dir.join("kube-proxy.kubeconfig"), "system:kube-proxy", &server)?;
        self.write_json("kubelet.json", &self.kubelet_config(pki))?;
        self.write_json("kube-proxy.json", &self.proxy_config())?;
        self.start_kubelet()?;
        self.start_proxy()
    }

    fn write_json(&self, file: &str, value: &serde_json::Value) -> Result<()> {
        layout::write(&self.layout.dir().join(file), format!("{value:#}\n"))
    }

    /// Starts containerd, unless it runs, and waits until it answers.
    pub fn start_containerd(&self) -> Result<()> {
        let config = self.layout.dir().join("containerd.toml");
        layout::write(&config, self.containerd_config()?)?;
        let mut command = self.daemon_command()?;
        command.arg(self.runtime_bin().join("containerd")).arg("--config").arg(&config);
        // It finds its shim in PATH.
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.runtime_bin().display()
        );
        command.env("PATH", path);
        let name = self.daemon("containerd");
        self.start(&name, &command)?;
        let answers = || {
            self.processes.expect_running(&name)?;
            Ok(self.ctr(&["version"]).is_ok().then_some(()))
        };
        wait::until(&format!("containerd of {}", self.name()), Duration::from_secs(20), answers)
    }

    /// Starts the kubelet, unless it runs.
    pub fn start_kubelet(&self) -> Result<()> {
        let mut command = self.daemon_command()?;
        command.arg(self.layout.cluster.checkout.bin().join("kubelet"));
        for (flag, file) in [("config", "kubelet.json"), ("kubeconfig", "kubelet.kubeconfig")] {
            command.arg(format!("--{flag}={}", self.layout.dir().join(file).display()));
        }
        command.arg(format!("--hostname-override={}", self.name()));
        command
            .arg(format!("--node-ip={}", self.layout.address()))
            .arg(format!("--root-dir={}", self.kubelet_root()));
        self.start(&self.daemon("kubelet"), &command)
    }

    /// Kills the kubelet at once; its pods go on.
    pub fn kill_kubelet(&self) -> Result<()> {
        self.processes.stop(&self.daemon("kubelet"), Signal::KILL, Duration::from_secs(5))
    }

    /// Kills containerd at once; its containers go on.
    pub fn kill_containerd(&self) -> Result<()> {
        self.processes.stop(&self.daemon("containerd"), Signal::KILL, Duration::from_secs(5))
    }

    fn start_proxy(&self) -> Result<()> {
        let mut command = self.daemon_command()?;
        command.arg(self.layout.cluster.checkout.bin().join("kube-proxy"));
        command.arg(format!("--config={}", self.layout.dir().join("kube-proxy.json").display()));
        self.start(&self.daemon("kube-proxy"), &command)
    }

    /// Waits until a process of the node reaches the API server by its Service address. A Node that was Ready before
    /// its daemons died still is when they start again, long before kube-proxy has written its rules; until then a
    /// packet to a Service ends on the link of the node, where nobody has that address.
    pub fn wait_services(&self) -> Result<()> {
        let connect = format!("exec 3<>/dev/tcp/{API_SERVICE}/443");
        let connected = || Ok(self.exec(&["timeout", "1", "bash", "-c", &connect]).is_ok().then_some(()));
        wait::until(&format!("the Services of {}", self.name()), Duration::from_secs(30), connected)
    }

    /// Runs containerd's command on the kubelet's containers.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command()?;
        process::output(command.arg(self.runtime_bin().join("ctr")).args(["-n", CRI]).args(args))
    }

    /// Imports an image archive, unless the node has this very one. Gives whether it was new.
    pub fn load(&self, archive: &Path) -> Result<bool> {
        let content = fs::read(archive).with_context(|| format!("read {}", archive.display()))?;
        let digest = layout::sha256_hex(&content);
        let file = archive.file_name().unwrap_or_default();
        let stamp = self.layout.dir().join("loaded").join(file);
        if fs::read_to_string(&stamp).is_ok_and(|loaded| loaded == digest) {
            return Ok(false);
        }
        // containerd's command runs in another directory.
        let path = std::path::absolute(archive).with_context(|| format!("find {}", archive.display()))?;
        self.ctr(&["images", "import", &path.display().to_string()])
            .with_context(|| format!("load {} into {}", archive.display(), self.name()))?;
        layout::write(&stamp, digest)?;
        Ok(true)
    }

    /// The pids of the first processes of a pod's containers, without its sandbox.
    pub fn container_pids(&self, namespace: &str, pod: &str) -> Result<Vec<u32>> {
        self.pids(namespace, pod, "container")
    }

    /// The pid of the process that holds a pod's sandbox.
    pub fn pause_pid(&self, namespace: &str, pod: &str) -> Result<u32> {
        let pids = self.pids(namespace, pod, "sandbox")?;
        match pids[..] {
            [pid] => Ok(pid),
            _ => bail!("pod {namespace}/{pod} has {} running sandboxes on {}", pids.len(), self.name()),
        }
    }

    fn pids(&self, namespace: &str, pod: &str, kind: &str) -> Result<Vec<u32>> {
        let labels = [
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.name", pod),
            ("io.cri-containerd.kind", kind),
        ];
        let filter: Vec<String> =
            labels.iter().map(|(key, value)| format!("labels.\"{key}\"=={value}")).collect();
        let containers = self.ctr(&["containers", "ls", "-q", &filter.join(",")])?;
        let tasks = self.ctr(&["tasks", "ls"])?;
        Ok(running_tasks(&tasks, &containers.lines().collect::<Vec<_>>()))
    }

    fn install_cni_plugins(&self) -> Result<()> {
        for plugin in CNI_PLUGINS {
            install(&Path::new("/usr/lib/cni").join(plugin), &self.cni_bin().join(plugin))?;
        }
        Ok(())
    }

    /// What the node sees as `/opt/cni/bin`.
    pub fn cni_bin(&self) -> PathBuf {
        self.layout.dir().join("opt-cni/bin")
    }

    /// What the node sees as `/etc/cni/net.d`.
    pub fn cni_conf(&self) -> PathBuf {
        self.layout.dir().join("etc-cni/net.d")
    }
}

/// The API user of a node's kubelet.
pub fn kubelet_user(node: &str) -> String {
    format!("system:node:{node}")
}

/// The pids of those containers that run, from `ctr tasks ls`: lines of container, pid, status.
fn running_tasks(tasks: &str, containers: &[&str]) -> Vec<u32> {
    let mut pids = Vec::new();
    for line in tasks.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [container, pid, "RUNNING"] = fields[..]
            && containers.contains(&container)
        {
            pids.extend(pid.parse::<u32>());
        }
    }
    pids
}

/// Copies a program, unless the copy is as long as the original; a program that runs keeps its old file.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    let size = |path: &Path| fs::metadata(path).map(|found| (found.len(), found.modified().ok()));
    let original = size(from).with_context(|| format!("read the metadata of {}", from.display()))?;
    if size(to).is_ok_and(|copy| copy.0 == original.0 && copy.1 >= original.1) {
        return Ok(());
    }
    let part = to.with_extension("part");
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let copied = fs::copy(from, &part).and_then(|_| fs::rename(&part, to));
    copied.with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_running_tasks_of_the_wanted_containers_count() {
        let tasks = "TASK    PID     STATUS\na 11 RUNNING\nb 12 RUNNING\nc 13 STOPPED\n";
        assert_eq!(running_tasks(tasks, &["a", "c"]), [11]);
    }
}

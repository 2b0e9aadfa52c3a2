//! A node and a kubelet for tests.
//!
//! A node is a process that holds a network and a mount namespace of its own, with tmpfs over the directories the
//! product uses; it ends with the test, also when that fails. The kubelet double does what the real one does with a
//! device plugin: takes registrations, calls back, follows the list, marks everything unhealthy when it ends.

#![allow(dead_code, reason = "each test binary uses another part")]

pub(crate) mod attachments;
pub(crate) mod kubelet;
mod run;

pub(crate) use run::eventually_in;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Nothing the agent does takes this long, also on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Whether this is root, which the test needs.
pub(crate) fn is_root() -> bool {
    run::runs(rustix::process::geteuid().is_root(), "root")
}

/// Whether strace is here, which the test needs.
pub(crate) fn has_strace() -> bool {
    run::runs(std::path::Path::new("/usr/bin/strace").exists(), "strace")
}

/// A node with link `dp0`, a kubelet, and an agent with this configuration whose 50 devices of `dataplane` the kubelet
/// has; none where this is not root.
pub(crate) fn serving(configuration: &str) -> Option<(Node, kubelet::Kubelet, Agent)> {
    is_root().then(|| {
        let node = Node::new();
        node.add_link("dp0");
        let kubelet = kubelet::Kubelet::start(&node);
        let agent = node.agent(configuration);
        kubelet.await_healthy("dataplane", 50);
        (node, kubelet, agent)
    })
}

/// A machine of its own, as far as the agent can see.
#[derive(Debug)]
pub(crate) struct Node {
    holder: Child,
}

impl Node {
    pub(crate) fn new() -> Self {
        let script = "set -e; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib; \
                      mount -t sysfs sysfs /sys; \
                      mkdir -p /run/netns /var/lib/kubelet/device-plugins /var/lib/kubelet/pod-resources; \
                      ip link set lo up; echo ready; exec sleep infinity";
        // Ends with the thread that runs the test, should that be killed.
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--propagation", "private"])
            .args(["sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "namespaces could not be made");
        Self { holder }
    }

    /// A path of the node, as seen from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        format!("/proc/{}/root{inside}", self.holder.id()).into()
    }

    /// Where its network namespace is.
    pub(crate) fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    pub(crate) fn plugins(&self) -> PathBuf {
        self.path("/var/lib/kubelet/device-plugins")
    }

    /// Sockets of the agent in the kubelet's directory.
    pub(crate) fn agent_sockets(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.plugins()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("mvt-")).collect()
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.holder.id().to_string();
        command.args(["--target", &target, "--net", "--mount", "--", program]);
        command
    }

    /// Runs a shell command inside and gives what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.command("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The device table on its disk.
    pub(crate) fn table(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path("/var/lib/macvtap/devices.json")).unwrap()).unwrap()
    }

    /// A cable whose near end is `name`, up.
    pub(crate) fn add_link(&self, name: &str) {
        self.sh(&format!("ip link add {name} type veth peer name {name}p && ip link set {name}p up && ip link set {name} up"));
    }

    /// Starts the agent with this configuration in the environment.
    pub(crate) fn agent(&self, configuration: &str) -> Agent {
        let mut command = self.agent_command();
        command.env("DP_MACVTAP_CONF", configuration);
        Agent::start(command)
    }

    /// Starts the agent with a configuration file.
    pub(crate) fn agent_with_file(&self, configuration: &str) -> Agent {
        self.write_configuration(configuration);
        let mut command = self.agent_command();
        command.args(["--config", "/run/conf"]);
        Agent::start(command)
    }

    /// Replaces the configuration file, as the kubelet does with a mounted one: at once.
    pub(crate) fn write_configuration(&self, text: &str) {
        std::fs::write(self.path("/run/conf.new"), text).unwrap();
        std::fs::rename(self.path("/run/conf.new"), self.path("/run/conf")).unwrap();
    }

    /// Starts the agent with the capabilities it has in its container, and no other.
    pub(crate) fn confined_agent(&self, configuration: &str) -> Agent {
        let confined = "exec setpriv --bounding-set=-all,+net_admin,+chown,+mknod --no-new-privs \"$0\"";
        let mut command = self.command("sh");
        command.args(["-c", confined, env!("CARGO_BIN_EXE_macvtap-node-agent")]);
        command.env("DP_MACVTAP_CONF", configuration);
        Agent::start(command)
    }

    pub(crate) fn agent_command(&self) -> Command {
        // A benchmark measures the program as it is shipped.
        let shipped = std::env::var("MACVTAP_AGENT").ok();
        self.agent_of(shipped.as_deref())
    }

    /// The same with this program, or that of this build.
    pub(crate) fn agent_of(&self, program: Option<&str>) -> Command {
        let mut command = self.command(program.unwrap_or(env!("CARGO_BIN_EXE_macvtap-node-agent")));
        command.env_remove("DP_MACVTAP_CONF").env_remove("NODE_NAME");
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A running agent, its log and its worker.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Agent {
    /// Starts an agent whose log nobody reads.
    pub(crate) fn start_unread(mut command: Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), log: Arc::default() }
    }

    pub(crate) fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, copy) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = copy.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Process ID of the parent.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ID of the worker.
    pub(crate) fn worker(&self) -> Option<u32> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// A figure of `/proc/<pid>/status` in KiB, of parent and worker together.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let of = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
            found.unwrap().trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        of(self.pid()) + of(self.worker().unwrap())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        signal_to(self.pid(), signal);
    }

    /// Waits for the end; gives how long it took, and whether it was a success.
    pub(crate) fn wait(&mut self) -> (Duration, std::process::ExitStatus) {
        let begun = Instant::now();
        let status = eventually("the agent ends", || self.child.try_wait().unwrap());
        (begun.elapsed(), status)
    }

    /// Asks it to end and waits.
    pub(crate) fn terminate(&mut self) -> Duration {
        self.signal(rustix::process::Signal::TERM);
        self.wait().0
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- agent\n{}---", self.log());
        }
    }
}

/// What the agent's metrics page says, from inside the node.
pub(crate) fn metrics(node: &Node) -> String {
    let get = "exec 3<>/dev/tcp/127.0.0.1/9469; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let output = node.command("bash").args(["-c", get]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// One value of it, by name and labels as they are written there.
pub(crate) fn metric(node: &Node, name: &str) -> Option<u64> {
    let text = metrics(node);
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

pub(crate) fn signal_to(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Looks again until there is something, or fails with what was waited for.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_in(DEADLINE, what, look)
}

//! Calls of the real binary inside a node.

#![allow(dead_code, unused_imports, reason = "each test binary uses another part")]

pub(crate) mod flows;
#[path = "../../../macvtap/tests/support/mod.rs"]
mod namespaces;
pub(crate) mod port;
pub(crate) mod queue;
pub(crate) mod vhost;

pub(crate) use namespaces::{
    Holder, Node, bare_node_and_pods, first_ifindex, is_root, node_and_pods, pod, state,
};

use macvtap::record::Attachment;
use macvtap::records;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// What a call answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

/// A call to be made.
#[derive(Clone, Debug)]
pub(crate) struct Call<'n> {
    node: &'n Node,
    variables: Vec<(&'static str, String)>,
    config: Value,
}

impl<'n> Call<'n> {
    /// A call for interface `net1` of a pod, whose UID and name are the container's.
    pub(crate) fn new(node: &'n Node, pod: &Holder, container: &str) -> Self {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=tenant-a;K8S_POD_NAME={container};K8S_POD_UID=uid-of-{container}"
        );
        let config = json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": "dataplaneMvp0"});
        Self {
            node,
            variables: vec![
                ("CNI_CONTAINERID", container.to_owned()),
                ("CNI_IFNAME", "net1".to_owned()),
                ("CNI_NETNS", pod.netns().display().to_string()),
                ("CNI_ARGS", args),
                ("CNI_PATH", "/usr/lib/cni".to_owned()),
            ],
            config,
        }
    }

    /// With another value of a variable.
    pub(crate) fn var(mut self, name: &'static str, value: &str) -> Self {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Without a variable.
    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.variables.retain(|(known, _)| *known != name);
        self
    }

    /// With these keys in the configuration; `null` removes one.
    pub(crate) fn with(mut self, keys: Value) -> Self {
        let (Some(config), Value::Object(keys)) = (self.config.as_object_mut(), keys) else {
            panic!("no object")
        };
        config.extend(keys);
        config.retain(|_, value| !value.is_null());
        self
    }

    /// With a value as it is, also `null`.
    pub(crate) fn raw(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub(crate) fn device(self, slot: u32) -> Self {
        self.with(json!({"deviceID": format!("dataplaneMvp{slot}")}))
    }

    /// Starts the binary; its input is written, its answer not yet read.
    pub(crate) fn start(&self, command: &str) -> Child {
        self.spawn(self.node.command(env!("CARGO_BIN_EXE_macvtap")), command)
    }

    pub(crate) fn run(&self, command: &str) -> Answer {
        Answer::of(self.start(command))
    }

    /// The result of a call that must succeed.
    pub(crate) fn ok(&self, command: &str) -> Value {
        let answer = self.run(command);
        assert!(answer.success, "{command}: {answer:?}");
        answer.json
    }

    /// The message of a call that must fail with this code.
    pub(crate) fn fails(&self, command: &str, code: u32) -> String {
        let answer = self.run(command);
        assert!(!answer.success, "{command} succeeded: {}", answer.json);
        assert_eq!(answer.json["code"], code, "{answer:?}");
        answer.json["msg"].as_str().unwrap().to_owned()
    }

    /// Runs the binary under strace, which disturbs its `number`th call of one of these kinds in the given way. None when it
    /// makes fewer.
    pub(crate) fn disturbed(&self, command: &str, calls: &str, how: &str, number: u32) -> Option<Answer> {
        let mut process = self.node.command("strace");
        let injected = format!("inject={calls}:{how}:when={number}");
        process.args(["-qq", "-o", "/run/strace", "-e", &format!("trace={calls}"), "-e", &injected]);
        process.arg(env!("CARGO_BIN_EXE_macvtap"));
        let answer = Answer::of(self.spawn(process, command));
        let log = self.node.sh("cat /run/strace; rm /run/strace");
        let happened = log.contains("(INJECTED)") || log.contains("killed by SIGKILL");
        happened.then_some(answer)
    }

    /// Runs the binary under strace and counts its system calls of one kind.
    pub(crate) fn counted(&self, command: &str, call: &str) -> (Answer, usize) {
        let mut process = self.node.command("strace");
        process.args(["-f", "-qq", "-o", "/run/strace", "-e", &format!("trace={call}")]);
        process.arg(env!("CARGO_BIN_EXE_macvtap"));
        let answer = Answer::of(self.spawn(process, command));
        let log = self.node.sh("cat /run/strace; rm /run/strace");
        (answer, log.lines().filter(|line| line.contains(&format!("{call}("))).count())
    }

    /// Runs the binary with its standard output going to this file of the node, and gives its exit code.
    pub(crate) fn run_into(&self, command: &str, output: &str) -> i32 {
        let mut process = self.node.command("sh");
        process.args(["-c", &format!("exec \"$0\" >{output}"), env!("CARGO_BIN_EXE_macvtap")]);
        self.spawn(process, command).wait().unwrap().code().unwrap()
    }

    /// Runs the binary from a shell that has done this first.
    pub(crate) fn run_after(&self, command: &str, script: &str) -> Answer {
        let mut process = self.node.command("sh");
        process.args(["-c", &format!("{script}; exec \"$0\""), env!("CARGO_BIN_EXE_macvtap")]);
        Answer::of(self.spawn(process, command))
    }

    /// Runs the binary with these bytes instead of a configuration.
    pub(crate) fn with_input(&self, command: &str, input: &[u8]) -> Answer {
        let process = self.node.command(env!("CARGO_BIN_EXE_macvtap"));
        Answer::of(self.spawn_with(process, command, input))
    }

    fn spawn(&self, process: Command, command: &str) -> Child {
        self.spawn_with(process, command, self.config.to_string().as_bytes())
    }

    fn spawn_with(&self, mut process: Command, command: &str, input: &[u8]) -> Child {
        self.prepare(&mut process, command);
        let mut child = process.spawn().unwrap();
        // A call that fails early may not read its input.
        let _ = child.stdin.take().unwrap().write_all(input);
        child
    }

    fn prepare(&self, process: &mut Command, command: &str) {
        process.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_COMMAND", command);
        process.envs(self.variables.iter().map(|(name, value)| (name, value)));
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }
}

impl Answer {
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let json = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap()
        };
        Self {
            success: output.status.success(),
            json,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The device number that the pod's own sysfs shows for its link.
pub(crate) fn tap_in(pod: &Holder) -> String {
    let net = format!("--net={}", pod.netns().display());
    let script = "mount -t sysfs none /sys && cat /sys/class/net/net1/tap*/dev";
    let output =
        Command::new("nsenter").args([&net, "unshare", "--mount", "sh", "-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The record of a slot, if there is one.
pub(crate) fn record(node: &Node, slot: u32) -> Option<Attachment> {
    records::read(&node.paths(), &format!("dataplaneMvp{slot}").parse().unwrap()).unwrap()
}

/// What `ip -d -j link` says about the pod's `net1`; null when there is none.
pub(crate) fn link(pod: &Holder) -> Value {
    let links: Value = serde_json::from_str(&Node::ip(pod, "-d -j link")).unwrap();
    let found = links.as_array().unwrap().iter().find(|link| link["ifname"] == "net1");
    found.cloned().unwrap_or_default()
}

/// The pod's other interface, with addresses and default routes.
pub(crate) fn give_eth0(pod: &Holder) {
    for command in [
        "link add eth0 type veth peer name far",
        "link set eth0 up",
        "link set far up",
        "addr add 10.0.0.2/24 dev eth0",
        "addr add fd0e::2/64 dev eth0 nodad",
        "route add default via 10.0.0.1 src 10.0.0.2 mtu 1400",
        "-6 route add default via fd0e::1 metric 1024",
    ] {
        Node::ip(pod, command);
    }
    // Both ends have a state of their own, which the kernel sets a while later.
    wait_until("eth0 and its other end are up", || {
        let links = Node::ip(pod, "-br link");
        let up = links.lines().filter(|line| line.contains("eth0") && line.contains(" UP "));
        up.count() == 2
    });
}

/// What a socket or a tap gave: whole frames.
pub(crate) type Frame = Vec<u8>;

/// Reads frames from a packet socket or a tap until `wanted` finds what it looks for; fails after 20 seconds. `skip` bytes
/// in front of each frame are left out. Gives every frame read, the found one last.
pub(crate) fn frames_until(
    source: impl std::os::fd::AsFd,
    skip: usize,
    what: &str,
    wanted: impl Fn(&[u8]) -> bool,
) -> Vec<Frame> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut frames: Vec<Frame> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match rustix::io::read(source.as_fd(), &mut buffer) {
            Ok(length) => {
                frames.push(buffer[skip.min(length)..length].to_vec());
                if wanted(frames.last().unwrap()) {
                    return frames;
                }
            }
            Err(rustix::io::Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                assert!(!left.is_zero(), "{what} never came; frames: {frames:02x?}");
                let left = Timespec::try_from(left).unwrap();
                poll(&mut [PollFd::new(&source, PollFlags::IN)], Some(&left)).unwrap();
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

/// The six bytes of a MAC address in text.
pub(crate) fn octets(mac: &Value) -> [u8; 6] {
    mac.as_str().unwrap().parse::<macvtap::mac::MacAddr>().unwrap().octets()
}

/// Whether a program of the distribution is here; a missing one is a failure where root is required.
pub(crate) fn has(program: &str, package: &str) -> bool {
    let there = std::path::Path::new(program).exists();
    let required = std::env::var("REQUIRE_ROOT").as_deref() == Ok("1");
    assert!(there || !required, "{program} is missing: install {package}");
    if !there {
        println!("skipped: needs {program}");
    }
    there
}

/// Whether the distribution's set of plugins is here.
pub(crate) fn has_plugins() -> bool {
    has("/usr/lib/cni/host-local", "containernetworking-plugins")
}

/// Waits until something is so; fails after 20 seconds.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within 20 seconds");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A program that runs as long as this value lives.
#[derive(Debug)]
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! Calls of a program as a runtime makes them, from spawn to reaped.

use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The network that a call is about.
#[derive(Clone, Copy, Default)]
pub(crate) struct Network<'a> {
    /// Which device, container and interface.
    pub(crate) number: usize,
    /// The directory of the IPAM plugin `lease`, if the network has one.
    pub(crate) ipam: Option<&'a Path>,
    /// The pod in which ADD made the link that CHECK examines.
    pub(crate) previous: Option<&'a Path>,
}

impl Network<'_> {
    /// The network of one device.
    pub(crate) fn of(number: usize) -> Self {
        Self { number, ..Self::default() }
    }

    fn interface(&self) -> String {
        format!("net{}", self.number)
    }

    fn config(&self) -> Value {
        let device = format!("dataplaneMvp{}", self.number);
        let mut config = json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": device, "mtu": 1400});
        if self.ipam.is_some() {
            config["ipam"] = json!({"type": "lease"});
        }
        if let Some(pod) = self.previous {
            let interface = json!({"name": self.interface(), "sandbox": pod});
            config["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [interface], "ips": []});
        }
        config
    }
}

/// One call.
pub(crate) fn call(program: &Path, command: &str, pod: &Path, network: &Network) -> Duration {
    let config = network.config().to_string();
    let start = Instant::now();
    end(spawn(program, command, pod, network, &config), command);
    start.elapsed()
}

/// Calls for devices from `first` on, one in each pod: from the first spawn until all are reaped.
pub(crate) fn crowd(program: &Path, command: &str, pods: &[PathBuf], first: usize) -> Duration {
    let networks: Vec<_> = (first..).take(pods.len()).map(Network::of).collect();
    let configs: Vec<String> = networks.iter().map(|network| network.config().to_string()).collect();
    let start = Instant::now();
    let calls = pods.iter().zip(networks.iter().zip(&configs));
    let calls: Vec<Child> =
        calls.map(|(pod, (network, config))| spawn(program, command, pod, network, config)).collect();
    for call in calls {
        end(call, command);
    }
    start.elapsed()
}

fn spawn(program: &Path, command: &str, pod: &Path, network: &Network, config: &str) -> Child {
    // MAC addresses are derived from it.
    let name = format!("bench{}", network.number);
    let mut child = Command::new(program)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_IFNAME", network.interface())
        .env("CNI_CONTAINERID", &name)
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={name};K8S_POD_UID={name}"),
        )
        .env("CNI_PATH", network.ipam.unwrap_or(Path::new("/nonexistent")))
        .env("CNI_NETNS", pod)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does nothing does not read.
    let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
    child
}

fn end(child: Child, command: &str) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
}

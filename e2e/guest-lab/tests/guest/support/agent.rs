//! The real agent.

use super::eventually;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

const PROGRAM: &str = "/bin/macvtap-node-agent";

/// A running agent and its log.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Agent {
    /// Starts it with macvtap-cni's JSON.
    pub(crate) fn standalone(configuration: &str) -> Self {
        Self::start(Command::new(PROGRAM).env("DP_MACVTAP_CONF", configuration))
    }

    /// Starts it with these pools, as if the API server had told them before it became unreachable.
    pub(crate) fn with_pools(pools: &[Value]) -> Self {
        let spec = serde_json::json!({"configHash": "h1", "pools": pools});
        std::fs::write("/var/lib/macvtap/nodestate.json", spec.to_string()).unwrap();
        Self::start(Command::new(PROGRAM).args(["--node-name", "n1"]))
    }

    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
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

    /// How many devices of a resource are in a state, by the agent's metrics.
    fn devices(resource: &str, state: &str) -> Option<u64> {
        let mut stream = TcpStream::connect("127.0.0.1:9469").ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let wanted = format!("macvtap_devices{{resource=\"{resource}\",state=\"{state}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok())
    }

    #[expect(clippy::unused_self, reason = "the one agent there is serves the metrics")]
    pub(crate) fn await_devices(&self, resource: &str, state: &str, count: u64) {
        let what = format!("{count} devices of {resource} are {state}");
        eventually(&what, || (Self::devices(resource, state) == Some(count)).then_some(()));
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn await_log(&self, words: &str) {
        eventually(&format!("the log says {words:?}"), || self.log().contains(words).then_some(()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- agent\n{}---", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pool as the operator renders it into a node's state, with these fields beside the usual ones.
pub(crate) fn pool(name: &str, selector: &Value, fields: &Value) -> Value {
    let mut pool = serde_json::json!({
        "name": name, "uid": "u", "generation": 1, "phase": "Active", "resourceName": name,
        "links": [selector], "capacity": {"perLink": 4},
        "health": {"carrier": "Required", "downDelaySeconds": 0, "upDelaySeconds": 0},
    });
    pool.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    pool
}

/// The links of a resource, by the device table.
pub(crate) fn table_links(resource: &str) -> Vec<String> {
    let text = std::fs::read("/var/lib/macvtap/devices.json").unwrap_or_default();
    let table: Value = serde_json::from_slice(&text).unwrap_or_default();
    let links = table["resources"][resource]["links"].as_array().cloned().unwrap_or_default();
    links.iter().filter_map(|link| link["name"].as_str().map(str::to_owned)).collect()
}

/// What `links` prints, for programs.
pub(crate) fn links() -> Vec<Value> {
    let output = Command::new(PROGRAM).args(["links", "--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The entry of one link in what `links` prints.
pub(crate) fn report(name: &str) -> Value {
    let found = links().into_iter().find(|link| link["name"] == name);
    found.unwrap_or_else(|| panic!("links does not tell of {name}"))
}

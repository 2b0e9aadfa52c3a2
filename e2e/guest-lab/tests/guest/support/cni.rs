//! The real plugin.

use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};

const PROGRAM: &str = "/opt/cni/bin/macvtap";

/// Calls for interface `net1` of one pod, in a namespace of its own.
#[derive(Debug)]
pub(crate) struct Pod {
    name: &'static str,
    config: Value,
}

impl Pod {
    /// A pod that has this device.
    pub(crate) fn new(name: &'static str, device: &str) -> Self {
        super::machine::ip(&format!("netns add {name}"));
        let config = json!({
            "cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": device,
        });
        Self { name, config }
    }

    /// With these keys in the configuration.
    pub(crate) fn with(mut self, keys: Value) -> Self {
        let (Some(config), Value::Object(keys)) = (self.config.as_object_mut(), keys) else {
            panic!("no object")
        };
        config.extend(keys);
        self
    }

    /// For CHECK: as the runtime passes on what ADD answered.
    pub(crate) fn with_previous(&self, result: &Value) -> Self {
        Self { name: self.name, config: self.config.clone() }.with(json!({"prevResult": result}))
    }

    /// The answer to a call that must succeed.
    pub(crate) fn ok(&self, command: &str) -> Value {
        self.call(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The message of a call that must fail.
    pub(crate) fn fails(&self, command: &str) -> String {
        match self.call(command) {
            Ok(answer) => panic!("{command} succeeded: {answer}"),
            Err(error) => error["msg"].as_str().unwrap().to_owned(),
        }
    }

    /// The pod's own view of its link.
    pub(crate) fn link(&self) -> Option<Value> {
        super::machine::link_in(self.name, "net1")
    }

    fn call(&self, command: &str) -> Result<Value, Value> {
        let name = self.name;
        let mut child = Command::new(PROGRAM)
            .env_clear()
            .envs([("PATH", "/usr/sbin:/bin"), ("CNI_COMMAND", command), ("CNI_CONTAINERID", name)])
            .envs([("CNI_IFNAME", "net1"), ("CNI_PATH", "/opt/cni/bin")])
            .env("CNI_NETNS", format!("/run/netns/{name}"))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A call that fails early may not read its input.
        let _ = child.stdin.take().unwrap().write_all(self.config.to_string().as_bytes());
        let output = child.wait_with_output().unwrap();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() { Ok(answer) } else { Err(answer) }
    }
}

//! The plugin among others in a list, called as a runtime calls a list: in order, each with the result of the one before.

use crate::reference::programs;
use crate::support::{Answer, Holder, Node, link, node_and_pods};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

/// A list of plugins for one interface of a pod.
pub(crate) struct Chain<'n> {
    pub(crate) node: &'n Node,
    pub(crate) netns: PathBuf,
    pub(crate) version: &'static str,
    pub(crate) plugins: Vec<Value>,
}

impl Chain<'_> {
    pub(crate) fn call(&self, plugin: &Value, command: &str, previous: Option<&Value>) -> Answer {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.into();
        config["name"] = "dataplane".into();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().unwrap();
        let program = match kind {
            "macvtap" => env!("CARGO_BIN_EXE_macvtap").into(),
            _ => programs().join(kind),
        };
        let mut process = self.node.command(program.to_str().unwrap());
        process.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "net1"),
            ("CNI_PATH", programs().to_str().unwrap()),
        ]);
        process.env("CNI_NETNS", &self.netns);
        let mut child =
            process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        Answer::of(child)
    }

    fn add(&self) -> Value {
        self.plugins.iter().fold(Value::Null, |previous, plugin| {
            let answer = self.call(plugin, "ADD", Some(&previous).filter(|previous| !previous.is_null()));
            assert!(answer.success, "ADD of {plugin}: {answer:?}");
            answer.json
        })
    }

    fn check(&self, result: &Value) -> Vec<Answer> {
        self.plugins.iter().map(|plugin| self.call(plugin, "CHECK", Some(result))).collect()
    }

    fn del(&self, result: &Value) {
        for plugin in self.plugins.iter().rev() {
            let answer = self.call(plugin, "DEL", Some(result));
            assert!(answer.success, "DEL of {plugin}: {answer:?}");
        }
    }
}

/// Of the plugins with these names.
fn chain<'n>(node: &'n Node, pod: &Holder, version: &'static str, names: &[&str]) -> Chain<'n> {
    let ranges = json!([[{"subnet": "10.9.0.0/24"}]]);
    let ipam = json!({"type": "host-local", "dataDir": "/run/leases", "ranges": ranges});
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let all = [
        json!({"type": "loopback"}),
        json!({"type": "macvtap", "deviceID": "dataplaneMvp0", "ipam": ipam}),
        json!({"type": "tuning", "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"}, "mac": "02:00:00:00:00:42"}),
        json!({"type": "portmap", "backend": "iptables", "runtimeConfig": ports}),
    ];
    let plugins =
        all.into_iter().filter(|plugin| names.contains(&plugin["type"].as_str().unwrap())).collect();
    Chain { node, netns: pod.netns(), version, plugins }
}

#[test]
fn the_plugin_takes_and_gives_results_in_a_list_of_others() {
    // portmap takes the addresses of whatever interface for the pod's, so it is no company for loopback.
    for (version, names, place) in
        [("0.4.0", ["loopback", "macvtap", "tuning"], 1), ("1.0.0", ["macvtap", "tuning", "portmap"], 0)]
    {
        let Some((node, [pod])) = node_and_pods() else { return };
        let before = node.traces();
        let chain = chain(&node, &pod, version, &names);
        let result = chain.add();
        let interfaces: Vec<&Value> =
            result["interfaces"].as_array().unwrap().iter().map(|interface| &interface["name"]).collect();
        assert_eq!(
            interfaces,
            if place == 1 { vec!["lo", "net1"] } else { vec!["net1"] },
            "what came before was lost"
        );
        let all = result["ips"].as_array().unwrap();
        let ours: Vec<&Value> = all.iter().filter(|ip| ip["interface"] == place).collect();
        assert_eq!((ours.len(), &ours[0]["address"]), (1, &json!("10.9.0.2/24")), "{result}");
        // What comes after works on our interface, and tells in the result what it changed.
        assert_eq!(link(&pod)["address"], "02:00:00:00:00:42");
        assert_eq!(result["interfaces"][usize::from(place == 1)]["mac"], "02:00:00:00:00:42");
        let mapped = || node.sh("iptables -t nat -S").contains("10.9.0.2:80");
        assert_eq!(mapped(), names.contains(&"portmap"));
        for answer in chain.check(&result) {
            assert!(answer.success, "{answer:?}");
        }
        Node::ip(&pod, "link set net1 address 02:00:00:00:00:43");
        let answers = chain.check(&result);
        let ours = answers.iter().find(|answer| answer.json["code"] == 102);
        assert!(ours.unwrap().json["msg"].as_str().unwrap().contains("has MAC address"), "{answers:?}");
        chain.del(&result);
        assert_eq!((node.traces(), link(&pod), mapped()), (before, Value::Null, false));
    }
}

#[test]
fn a_list_that_fails_later_is_taken_back() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let mut chain = chain(&node, &pod, "1.0.0", &["loopback", "macvtap", "tuning"]);
    chain.plugins[2] = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.net1.no_such_key": "1"}});
    let first = chain.call(&chain.plugins[0], "ADD", None).json;
    let second = chain.call(&chain.plugins[1], "ADD", Some(&first)).json;
    assert!(!chain.call(&chain.plugins[2], "ADD", Some(&second)).success);
    // As a runtime does: without a result, in reverse order.
    for plugin in chain.plugins.iter().rev() {
        let answer = chain.call(plugin, "DEL", None);
        assert!(answer.success, "DEL of {plugin}: {answer:?}");
    }
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
}

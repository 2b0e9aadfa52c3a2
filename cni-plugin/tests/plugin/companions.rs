//! Each plugin that people put behind a main plugin, behind ours and behind the reference macvlan plugin: what works there
//! works here, and everything is as before afterwards.

use crate::chain::Chain;
use crate::reference::programs;
use crate::support::{Answer, Holder, Node, give_eth0, has_plugins, link, node_and_pods};
use serde_json::{Value, json};

const VERSIONS: [&str; 3] = ["0.3.1", "1.0.0", "1.1.0"];

/// How a list went.
#[derive(Debug, PartialEq)]
struct Course {
    added: bool,
    /// Whether the CHECK of the companion succeeded.
    checked: bool,
    /// What is left that was not there before.
    left: Vec<String>,
}

fn main_plugin(kind: &str) -> Value {
    let ipam = json!({
        "type": "host-local", "dataDir": "/run/leases", "ranges": [[{"subnet": "10.9.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    match kind {
        "macvtap" => json!({"type": kind, "deviceID": "dataplaneMvp0", "ipam": ipam}),
        _ => json!({"type": kind, "master": "dp0", "mode": "bridge", "ipam": ipam}),
    }
}

/// Everything of the pod that a list may touch.
fn pod_state(node: &Node, pod: &Holder) -> Vec<String> {
    let shown = ["-br link", "-o -4 addr", "-4 route show table all", "-6 route show table all", "rule"];
    let mut lines: Vec<String> = Vec::new();
    for arguments in shown {
        // The lifetime of an address and the kernel's own multicast routes change by themselves.
        let text = Node::ip(pod, arguments).lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
        lines.extend(text.into_iter().filter(|line| !line.contains("fe80::") && !line.contains("ff00::")));
    }
    lines.extend(node.traces().lines().map(str::to_owned));
    lines.extend(
        node.sh("iptables -t nat -S; ls /run/leases/* | grep ^10 || true").lines().map(str::to_owned),
    );
    lines.sort();
    lines
}

/// ADD, CHECK and DEL of a list; `between` looks at the pod while it is attached.
fn course(chain: &Chain<'_>, pod: &Holder, between: impl FnOnce(&Value)) -> Course {
    let before = pod_state(chain.node, pod);
    let mut result = Value::Null;
    let added = chain.plugins.iter().all(|plugin| {
        let answer = chain.call(plugin, "ADD", Some(&result).filter(|result| !result.is_null()));
        if answer.success {
            result = answer.json.clone();
        } else {
            println!("ADD of {plugin}: {answer:?}");
        }
        answer.success
    });
    let check = |plugin: &Value| -> Answer { chain.call(plugin, "CHECK", Some(&result)) };
    let mut checked = false;
    if added {
        between(&result);
        checked = check(&chain.plugins[1]).success;
        if chain.plugins[0]["type"] == "macvtap" {
            let ours = check(&chain.plugins[0]);
            assert!(ours.success, "CHECK behind {}: {ours:?}", chain.plugins[1]);
        }
    }
    for plugin in chain.plugins.iter().rev() {
        let answer = chain.call(plugin, "DEL", Some(&result).filter(|_| added));
        assert!(answer.success, "DEL of {plugin}: {answer:?}");
    }
    let after = pod_state(chain.node, pod);
    let left = after.iter().filter(|line| !before.contains(line)).cloned().collect();
    let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    assert_eq!(lost, Vec::<&String>::new(), "lost behind {}", chain.plugins[1]);
    Course { added, checked, left }
}

/// The same list behind ours and behind macvlan, in every version.
fn compare(companion: &Value, between: impl Fn(&Holder, &Value)) {
    let Some((node, [ours, theirs])) = has_plugins().then(node_and_pods).flatten() else { return };
    programs();
    for pod in [&ours, &theirs] {
        give_eth0(pod);
    }
    node.sh("mkdir -p /run/leases/dataplane; iptables -t nat -N KUBE-MARK-MASQ || true");
    for version in VERSIONS {
        let run = |kind: &str, pod: &Holder| {
            let plugins = vec![main_plugin(kind), companion.clone()];
            // The first call of a list makes directories and chains that stay.
            let chain = Chain { node: &node, netns: pod.netns(), version, plugins };
            course(&chain, pod, |_| ());
            course(&chain, pod, |result| between(pod, result))
        };
        let (macvlan, macvtap) = (run("macvlan", &theirs), run("macvtap", &ours));
        println!("{version} {companion}: macvlan {macvlan:?}, macvtap {macvtap:?}");
        assert_eq!(macvtap.added, macvlan.added, "{version} {companion}");
        // The reference refuses a CHECK before 0.4.0.
        assert!(macvtap.checked || !macvlan.checked, "{version} {companion}");
        assert_eq!(macvtap.left, Vec::<String>::new(), "{version} {companion}");
        assert_eq!(link(&ours), Value::Null);
    }
}

#[test]
fn tuning_may_change_mac_and_mtu() {
    let tuning = json!({"type": "tuning", "mtu": 1400, "mac": "02:00:00:00:00:42", "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"}});
    compare(&tuning, |pod, _| {
        let link = link(pod);
        assert_eq!((&link["mtu"], &link["address"]), (&json!(1400), &json!("02:00:00:00:00:42")));
    });
}

#[test]
fn sbr_moves_the_routes_and_the_pod_keeps_its_default_route() {
    compare(&json!({"type": "sbr"}), |pod, result| {
        let way = Node::ip(pod, "-4 route get 8.8.8.8");
        assert!(way.contains("dev eth0"), "{way}");
        let address = result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/24");
        let way = Node::ip(pod, &format!("-4 route get 8.8.8.8 from {address}"));
        assert!(way.contains("via 10.9.0.1 dev net1"), "{way}");
    });
}

#[test]
fn bandwidth_without_limits_passes_the_result_on() {
    compare(&json!({"type": "bandwidth"}), |_, result| {
        assert_eq!(result["interfaces"][0]["name"], "net1", "{result}");
    });
}

#[test]
fn bandwidth_with_limits_needs_a_veth_and_its_refusal_is_taken_back() {
    let limits = json!({"type": "bandwidth", "ingressRate": 1_000_000, "ingressBurst": 1_000_000});
    compare(&limits, |_, result| panic!("it has no host interface: {result}"));
}

#[test]
fn portmap_maps_the_address() {
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    compare(&json!({"type": "portmap", "backend": "iptables", "runtimeConfig": ports}), |_, result| {
        assert_eq!(result["ips"][0]["interface"], 0, "{result}");
    });
}

//! kube-ovn's rules at the edge of its plugin: an executable of that name that behaves as kube-ovn's does, with its words.
//! The real one and its daemon run in the cluster tests.

use crate::support::{Call, Holder, Node, give_eth0, link, node_and_pods, record};
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;

const SOCKET: &str = "/run/openvswitch/kube-ovn-daemon.sock";
const EOF: &str = "Post \"http://dummy/api/v1/add\": EOF";

/// A pod on a node whose `kube-ovn` notes each call and runs this shell text; `$n` is the number of the ADD.
fn node_with(text: &str) -> Option<(Node, Holder)> {
    let (node, [pod]) = node_and_pods()?;
    set(&node, text);
    Some((node, pod))
}

fn set(node: &Node, text: &str) {
    let script = format!(
        "#!/bin/sh
cat >/run/stdin-$CNI_COMMAND
nsenter --net=$CNI_NETNS ip link show $CNI_IFNAME >/dev/null 2>&1 && link=link || link=gone
echo $CNI_COMMAND $CNI_IFNAME $link >>/run/calls
n=$(grep -c ^ADD /run/calls)
refuse() {{ printf '{{\"code\": 11, \"msg\": \"RPC failed\", \"details\": \"%s\"}}' \"$(echo \"$1\" | sed 's/\"/\\\\\"/g')\"; exit 1; }}
{text}
"
    );
    node.sh("rm -f /run/calls; mkdir -p /run/plugins /run/openvswitch");
    let path = node.paths().run().with_file_name("plugins/kube-ovn");
    std::fs::write(&path, script).unwrap();
    node.sh("chmod 755 /run/plugins/kube-ovn");
}

fn answer(json: &Value) -> String {
    format!("[ $CNI_COMMAND = ADD ] && echo '{json}'; exit 0")
}

fn dual(routes: &Value) -> Value {
    json!({
        "interfaces": [{"name": "", "sandbox": "/somewhere"}],
        "ips": [{"address": "172.32.0.11/24", "gateway": "172.32.0.1", "interface": 0},
                {"address": "fd00:32::11/112", "gateway": "fd00:32::1", "interface": 0}],
        "routes": routes,
    })
}

fn one_address() -> Value {
    json!({"interfaces": [{"name": "", "sandbox": "/somewhere"}], "ips": [{"address": "172.31.0.41/24", "interface": 0}], "dns": {}})
}

fn call<'n>(node: &'n Node, pod: &Holder) -> Call<'n> {
    let ipam = json!({"type": "kube-ovn", "server_socket": SOCKET, "provider": "p4p1.default"});
    Call::new(node, pod, "c1").with(json!({"name": "p4p1", "ipam": ipam})).var("CNI_PATH", "/run/plugins")
}

fn calls(node: &Node) -> Vec<String> {
    node.sh("cat /run/calls 2>/dev/null; true").lines().map(str::to_owned).collect()
}

fn settings(node: &Node, json: &Value) {
    std::fs::write(node.paths().cni_settings(), json.to_string()).unwrap();
}

#[test]
fn a_daemon_that_is_being_restarted_and_a_pod_it_has_not_heard_of_are_waited_for() {
    let dial = "Post \"http://dummy/api/v1/add\": dial unix /run/openvswitch/kube-ovn-daemon.sock: connect:";
    let text = format!(
        "case $CNI_COMMAND-$n in
ADD-1) refuse '{EOF}';;
ADD-2) refuse '{dial} connection refused';;
ADD-3) refuse '{dial} no such file or directory';;
ADD-4) refuse 'request ip return 500 get pod default/c1 failed pod \"c1\" not found';;
esac
{}",
        answer(&one_address())
    );
    let Some((node, pod)) = node_with(&text) else { return };
    let result = call(&node, &pod).ok("ADD");
    assert_eq!(result["ips"][0]["address"], "172.31.0.41/24");
    assert_eq!(calls(&node).len(), 5, "{:?}", calls(&node));
}

#[test]
fn what_does_not_pass_by_itself_fails_at_once_with_the_daemons_words_and_where_to_look() {
    let Some((node, pod)) = node_with("") else { return };
    let before = node.traces();
    for reason in [
        "request ip return 400 provider nosuch.default not bind to any subnet",
        "request ip return 500 no address allocated to pod default/c1 provider p4p1.default, please see kube-ovn-controller logs to find errors",
    ] {
        set(&node, &format!("[ $CNI_COMMAND = ADD ] && refuse '{reason}'; exit 0"));
        let message = call(&node, &pod).fails("ADD", 11);
        assert!(message.contains(reason) && message.contains("kube-ovn-controller"), "{message}");
        assert_eq!(calls(&node), ["ADD net1 gone"]);
        assert_eq!((node.traces(), link(&pod)), (before.clone(), Value::Null));
    }
}

#[test]
fn a_daemon_that_stays_away_is_given_up_and_one_that_hangs_is_too() {
    let Some((node, pod)) = node_with(&format!("refuse '{EOF}'")) else { return };
    settings(&node, &json!({"ipamRetrySeconds": 3}));
    let message = call(&node, &pod).fails("ADD", 11);
    assert!(message.contains("EOF; the reason is in the pod's Events"), "{message}");
    let tries = calls(&node).len();
    assert!((2..=7).contains(&tries), "{tries} tries");
    // Tries end with the time for all of them, one that is still under way by a signal.
    set(&node, &format!("refuse '{EOF}'"));
    settings(&node, &json!({"ipamRetrySeconds": 3600, "ipamTimeoutSeconds": 1}));
    let answer = call(&node, &pod).run("ADD");
    assert!(!answer.success && [json!(11), json!(101)].contains(&answer.json["code"]), "{answer:?}");
    set(&node, "[ $CNI_COMMAND = ADD ] && exec sleep 600; exit 0");
    let message = call(&node, &pod).fails("ADD", 101);
    assert!(message.contains("did not end in time and was killed"), "{message}");
    assert_eq!((record(&node, 0), link(&pod)), (None, Value::Null));
}

#[test]
fn another_plugin_is_not_asked_again() {
    let Some((node, pod)) = node_with(&format!("refuse '{EOF}'")) else { return };
    node.sh("mv /run/plugins/kube-ovn /run/plugins/other");
    let call = call(&node, &pod).with(json!({"ipam": {"type": "other"}}));
    call.fails("ADD", 11);
    assert_eq!(calls(&node), ["ADD net1 gone"]);
    call.fails("DEL", 11);
}

#[test]
fn its_plugin_learns_no_device_and_answers_with_interfaces_in_every_version() {
    let Some((node, pod)) = node_with(&answer(&one_address())) else { return };
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let call = call(&node, &pod)
            .with(json!({"cniVersion": version, "runtimeConfig": {"deviceID": "dataplaneMvp0"}}));
        let result = call.ok("ADD");
        let sandbox = pod.netns().display().to_string();
        assert_eq!(
            (&result["interfaces"][0]["name"], &result["interfaces"][0]["sandbox"]),
            (&json!("net1"), &json!(sandbox))
        );
        assert_eq!(
            (result["interfaces"].as_array().unwrap().len(), &result["ips"][0]["interface"]),
            (1, &json!(0))
        );
        call.ok("DEL");
        for verb in ["ADD", "DEL"] {
            let stdin: Value = serde_json::from_str(&node.sh(&format!("cat /run/stdin-{verb}"))).unwrap();
            assert!(!stdin.to_string().contains("dataplaneMvp0"), "{stdin}");
            assert_eq!(stdin["cniVersion"], version);
        }
    }
}

/// The pod's default routes.
fn defaults(pod: &Holder) -> [String; 2] {
    ["-4 route show default", "-6 route show default"].map(|what| Node::ip(pod, what))
}

#[test]
fn a_gateway_means_a_default_route_in_front_of_that_of_another_interface() {
    let custom = json!([{"dst": "10.99.0.0/16", "gw": "172.32.0.254"}]);
    let Some((node, pod)) = node_with(&answer(&dual(&custom))) else { return };
    give_eth0(&pod);
    let call = call(&node, &pod);
    let result = call.ok("ADD");
    let routes =
        json!([custom[0], {"dst": "0.0.0.0/0", "gw": "172.32.0.1"}, {"dst": "::/0", "gw": "fd00:32::1"}]);
    assert_eq!(result["routes"], routes, "the result names the routes that were made");
    for (first, second, used) in [
        ("default via 172.32.0.1 dev net1", "default via 10.0.0.1 dev eth0", "-4 route get 192.0.2.1"),
        ("default via fd00:32::1 dev net1", "default via fd0e::1 dev eth0", "-6 route get 2001:db8::1"),
    ] {
        let all = Node::ip(
            &pod,
            &used.replace("route get 192.0.2.1", "route").replace("route get 2001:db8::1", "route"),
        );
        assert!(all.contains(first) && all.contains(second), "{all}");
        assert!(Node::ip(&pod, used).contains("dev net1"), "{all}");
    }
    assert!(Node::ip(&pod, "route").contains("10.99.0.0/16 via 172.32.0.254 dev net1"));
    let checked = call.clone().with(json!({"prevResult": result}));
    checked.ok("CHECK");
    for (change, lost) in [
        ("route del 10.99.0.0/16", "lost route 10.99.0.0/16 via 172.32.0.254"),
        ("-6 route del default dev net1", "lost route ::/0 via fd00:32::1"),
        ("-6 addr del fd00:32::11/112 dev net1", "lost address fd00:32::11/112"),
    ] {
        Node::ip(&pod, change);
        let message = checked.fails("CHECK", 102);
        assert!(message.contains(lost), "{change}: {message}");
        call.ok("ADD");
        checked.ok("CHECK");
    }
}

#[test]
fn a_default_route_of_another_interface_is_as_before_when_this_one_goes_or_cannot_be_made() {
    let Some((node, pod)) = node_with(&answer(&dual(&json!([])))) else { return };
    give_eth0(&pod);
    let before = defaults(&pod);
    let call = call(&node, &pod);
    call.ok("ADD");
    call.ok("ADD");
    for [first, second] in
        defaults(&pod).map(|routes| ["net1", "eth0"].map(|name| routes.find(&format!("dev {name}"))))
    {
        assert!(first.is_some() && first < second, "{:?}", defaults(&pod));
    }
    // A call that fails because of this interface, and a late DEL of another container, take nothing away.
    call.clone().device(1).fails("ADD", 7);
    call.clone().var("CNI_CONTAINERID", "c0").ok("DEL");
    call.ok("DEL");
    assert_eq!(defaults(&pod), before);
    assert!(!Node::ip(&pod, "route show table all").contains("table 2"), "a copy was left");
    // A later route that the kernel does not take: its router is on no network of the pod.
    let given = json!([{"dst": "0.0.0.0/0", "gw": "172.32.0.1"}, {"dst": "::/0", "gw": "fd00:32::1"}, {"dst": "10.99.0.0/16", "gw": "192.0.2.1"}]);
    set(&node, &answer(&dual(&given)));
    let message = call.fails("ADD", 100);
    assert!(message.contains("10.99.0.0/16 via 192.0.2.1"), "{message}");
    assert_eq!(defaults(&pod), before);
    // What the pod itself chose meanwhile stays.
    set(&node, &answer(&dual(&json!([]))));
    call.ok("ADD");
    Node::ip(&pod, "link del net1");
    Node::ip(&pod, "-4 route replace default via 10.0.0.9");
    call.ok("DEL");
    assert_eq!(defaults(&pod)[0].trim(), "default via 10.0.0.9 dev eth0");
    assert_eq!(defaults(&pod)[1], before[1]);
}

#[test]
fn a_default_route_is_as_before_when_a_whole_nic_cannot_be_attached() {
    let given = json!([{"dst": "0.0.0.0/0", "gw": "172.32.0.1"}, {"dst": "::/0", "gw": "fd00:32::1"}, {"dst": "10.99.0.0/16", "gw": "192.0.2.1"}]);
    let Some((node, pod)) = node_with(&answer(&dual(&given))) else { return };
    let address = "0000:00:0a.0";
    node.store_table(|table| Node::make_nic(table, address));
    give_eth0(&pod);
    let before = defaults(&pod);
    let message = call(&node, &pod).with(json!({"deviceID": address})).fails("ADD", 100);
    assert!(message.contains("10.99.0.0/16 via 192.0.2.1"), "{message}");
    assert_eq!(defaults(&pod), before);
    assert!(node.sh("ip -br link").contains("dp0"), "the NIC is back");
}

#[test]
fn one_network_on_two_interfaces_of_a_pod_is_refused_with_the_reason() {
    let Some((node, pod)) = node_with(&answer(&one_address())) else { return };
    call(&node, &pod).ok("ADD");
    let before = (node.traces(), link(&pod));
    let second = call(&node, &pod).device(1).var("CNI_IFNAME", "net2");
    let message = second.fails("ADD", 7);
    assert!(
        message.starts_with("address 172.31.0.41 is already on net1 of this pod: kube-ovn gives one"),
        "{message}"
    );
    assert_eq!((node.traces(), link(&pod)), before);
    assert_eq!(calls(&node).last().unwrap(), "DEL net2 gone");
    assert!(Node::ip(&pod, "-br addr show dev net1").contains("172.31.0.41/24"));
}

#[test]
fn an_answer_without_addresses_is_told_as_two_versions_and_given_back() {
    let text = answer(&json!({"interfaces": [{"name": "", "sandbox": "/somewhere"}], "dns": {}}));
    let Some((node, pod)) = node_with(&text) else { return };
    let message = call(&node, &pod).fails("ADD", 101);
    assert!(message.contains("plugin and daemon of kube-ovn are of different versions"), "{message}");
    assert_eq!(calls(&node), ["ADD net1 gone", "DEL net1 gone"]);
}

#[test]
fn a_pod_goes_while_the_daemon_is_away_and_its_link_goes_first() {
    let away = "refuse 'Post \"http://dummy/api/v1/del\": dial unix /run/openvswitch/kube-ovn-daemon.sock: connect: no such file or directory'";
    let text = format!("[ $CNI_COMMAND = DEL ] && {away}\n{}", answer(&one_address()));
    let Some((node, pod)) = node_with(&text) else { return };
    let before = node.traces();
    call(&node, &pod).ok("ADD");
    let answered = call(&node, &pod).run("DEL");
    assert!(answered.success, "{answered:?}");
    assert!(
        answered.stderr.contains("level=WARN \"kube-ovn's daemon was not notified"),
        "{}",
        answered.stderr
    );
    assert_eq!(calls(&node).last().unwrap(), "DEL net1 gone");
    assert_eq!((node.traces(), link(&pod)), (before.clone(), Value::Null));
    // Without the plugin as well: kube-ovn was uninstalled.
    call(&node, &pod).var("CNI_PATH", "/no/such").ok("DEL");
    // Anything else that goes wrong is reported, and the link is gone nevertheless.
    set(
        &node,
        &format!(
            "[ $CNI_COMMAND = DEL ] && refuse 'delete ip return 500 del nic failed'\n{}",
            answer(&one_address())
        ),
    );
    call(&node, &pod).ok("ADD");
    assert!(call(&node, &pod).fails("DEL", 11).contains("del nic failed"));
    assert_eq!(link(&pod), Value::Null);
    set(&node, &answer(&one_address()));
    call(&node, &pod).ok("DEL");
    assert_eq!(node.traces(), before);
}

#[test]
fn status_tells_whether_the_daemon_listens() {
    let Some((node, pod)) = node_with("exit 0") else { return };
    let call = call(&node, &pod).with(json!({"cniVersion": "1.1.0"}));
    let message = call.fails("STATUS", 50);
    assert!(message.contains(SOCKET) && message.contains("No such file"), "{message}");
    let listener =
        UnixListener::bind(node.paths().run().with_file_name("openvswitch/kube-ovn-daemon.sock")).unwrap();
    assert_eq!(call.ok("STATUS"), Value::Null);
    // What a killed daemon leaves.
    drop(listener);
    assert!(call.fails("STATUS", 50).contains("Connection refused"));
    assert!(call.var("CNI_PATH", "/no/such").fails("STATUS", 50).contains("IPAM plugin kube-ovn is in none"));
}

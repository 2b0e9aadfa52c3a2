//! What becomes of the link under a pod's macvtap while the pod has it.

use crate::support::{Call, Holder, Node, link, node_and_pods, record, state};
use macvtap::detach;
use macvtap::kernel::Rtnl;
use serde_json::{Value, json};

/// Moves `dp0` into another namespace and back, where another link has its index meanwhile. Its macvtaps stay.
fn move_away_and_back(node: &Node, elsewhere: &Holder) {
    let index = node.ifindex("dp0");
    node.sh(&format!("ip link set dp0 netns {}", elsewhere.pid()));
    node.sh(&format!("ip link add name thief index {index} type veth peer name accomplice"));
    Node::ip(elsewhere, &format!("link set dp0 netns {}", node.holder.pid()));
    node.sh("ip link set dp0 up; ip link del thief");
    assert_ne!(node.ifindex("dp0"), index);
}

#[test]
fn a_link_whose_lower_link_was_in_another_namespace_is_still_the_pods() {
    let Some((node, [pod, elsewhere])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let before = state(&node, &pod);
    let gc = json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []});
    for (command, keys) in [("DEL", json!({})), ("GC", gc)] {
        let result = call.ok("ADD");
        let made = record(&node, 0).unwrap();
        move_away_and_back(&node, &elsewhere);
        assert!(!node.inside(|| detach::is_lost(&mut Rtnl::node().unwrap(), &made)), "it is there");
        // As the agent does when the link is back.
        node.store_table(|_| ());
        call.clone().with(json!({"prevResult": result})).ok("CHECK");
        call.clone().with(keys).ok(command);
        assert_eq!((link(&pod), record(&node, 0)), (Value::Null, None), "{command}");
        assert_eq!(state(&node, &pod), before, "{command}");
    }
}

#[test]
fn a_repeated_add_keeps_a_link_whose_lower_link_was_in_another_namespace() {
    let Some((node, [pod, elsewhere])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    // As a guest has it.
    let tap = crate::wire::tap_of(&node, 0);
    move_away_and_back(&node, &elsewhere);
    node.store_table(|_| ());
    let result = call.ok("ADD");
    assert_eq!(record(&node, 0).unwrap().lower_ifindex, node.ifindex("dp0"));
    rustix::io::write(&tap, &[0; 70]).expect("the guest's tap is the link's");
    call.with(json!({"prevResult": result})).ok("CHECK");
}

//! What kube-ovn's IPAM plugin needs beside what every IPAM plugin needs. Pure, but for [`reach`].
//!
//! The plugin passes the call on to kube-ovn's daemon, whatever fails there is code 11 with the daemon's text, and the
//! addresses are the controller's: they are freed with the Pod object, not by DEL.

use crate::config::kube_ovn::KubeOvn;
use crate::ipam::route::{EVERYTHING, same_family};
use crate::protocol::result::{CniResult, Route};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::net::IpAddr;

/// What a person does when kube-ovn gives no address: its plugin does not know the reason.
pub(crate) const WHERE_TO_LOOK: &str =
    "the reason is in the pod's Events and in the log of kube-ovn-controller";

/// Why an invalid answer has no addresses: the 1.16 plugin reads nothing out of an older daemon's.
pub(crate) const VERSION_MISMATCH: &str = "its answer has no ips: plugin and daemon of kube-ovn are of different versions; install the plugin of the \
     daemon's version";

/// How a connection to the daemon ends when the daemon is away, as Go's network library says it: about to be started
/// again, not yet started, or killed (its handler too) during the request.
const DAEMON_AWAY: [&str; 5] =
    ["EOF", "connection refused", "no such file or directory", "connection reset by peer", "broken pipe"];

/// Why the plugin failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody answers at the daemon's socket, for now.
    DaemonAway,
    /// The daemon has not heard of the pod, yet.
    PodUnknown,
    /// Anything else: asking again would give the same answer.
    Other,
}

/// Judges the text with which the plugin failed.
pub(crate) fn failure(text: &str) -> Failure {
    let text = text.trim_end();
    let answered = text.contains("request ip return ") || text.contains("delete ip return ");
    if answered {
        // 400 is a mistake in the configuration. Of what is 500, only this passes by itself within seconds.
        let unknown =
            text.contains("return 500 ") && text.contains("get pod ") && text.ends_with("not found");
        return if unknown { Failure::PodUnknown } else { Failure::Other };
    }
    if DAEMON_AWAY.iter().any(|end| text.ends_with(end)) { Failure::DaemonAway } else { Failure::Other }
}

/// Adds the default route that the plugin forgets as soon as the configuration or the pod has routes of its own.
/// kube-ovn gives a gateway only to an interface that should have the default route.
pub(crate) fn complete(result: &mut CniResult) {
    for everything in EVERYTHING {
        let of_family = |address: &IpAddr| same_family(&everything, address);
        let gateway = result.ips.iter().find_map(|ip| ip.gateway.filter(of_family));
        let is_default = |route: &Route| match (route.dst, route.gw) {
            (Some(destination), _) => destination == everything,
            (None, gateway) => gateway.as_ref().is_some_and(of_family),
        };
        if let Some(gateway) = gateway
            && !result.routes.iter().any(is_default)
        {
            result.routes.push(Route { dst: Some(everything), gw: Some(gateway), ..Route::default() });
        }
    }
}

/// Whether somebody listens at the daemon's socket.
pub(crate) fn reach(kube_ovn: &KubeOvn) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(&kube_ovn.socket)?) {
        // So many callers are waiting that the kernel takes no more of them.
        Ok(()) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use serde_json::{Value, json};

    #[test]
    fn only_what_passes_by_itself_is_asked_for_again() {
        let post = "IPAM plugin kube-ovn: ADD: RPC failed: Post \"http://dummy/api/v1/add\": ";
        let dial = "dial unix /run/openvswitch/kube-ovn-daemon.sock: connect: ";
        for text in [
            format!("{post}EOF"),
            format!("{post}{dial}connection refused"),
            format!("{post}{dial}no such file or directory"),
            format!("{post}read unix @->/run/openvswitch/a.sock: read: connection reset by peer"),
            format!("{post}write: broken pipe\n"),
        ] {
            assert_eq!(failure(&text), Failure::DaemonAway, "{text}");
        }
        let unknown =
            "RPC failed: request ip return 500 get pod default/ghost failed pod \"ghost\" not found";
        assert_eq!(failure(unknown), Failure::PodUnknown);
        for text in [
            "RPC failed: request ip return 400 provider nosuch.EOF",
            "RPC failed: request ip return 400 get pod default/ghost failed pod \"ghost\" not found",
            "RPC failed: request ip return 500 no address allocated to pod default/t2 provider tiny.default, please see kube-ovn-controller logs to find errors",
            "RPC failed: delete ip return 500 del nic failed: no such file or directory",
            "",
        ] {
            assert_eq!(failure(text), Failure::Other, "{text}");
        }
    }

    #[test]
    fn a_gateway_means_a_default_route_of_its_family_unless_there_is_one() {
        let completed = |json: Value| {
            let mut result = CniResult::parse(json, "it", Code::Ipam).unwrap();
            complete(&mut result);
            serde_json::to_value(&result.routes).unwrap()
        };
        let dual = json!([{"address": "172.32.0.11/24", "gateway": "172.32.0.1"}, {"address": "fd00:32::11/112", "gateway": "fd00:32::1"}]);
        let (v4, v6) =
            (json!({"dst": "0.0.0.0/0", "gw": "172.32.0.1"}), json!({"dst": "::/0", "gw": "fd00:32::1"}));
        let custom = json!({"dst": "10.99.0.0/16", "gw": "172.32.0.254"});
        assert_eq!(completed(json!({"ips": dual, "routes": [custom]})), json!([custom, v4, v6]));
        assert_eq!(completed(json!({"ips": dual, "routes": [v4, v6]})), json!([v4, v6]));
        let other = json!({"gw": "172.32.0.2"});
        assert_eq!(completed(json!({"ips": dual, "routes": [other]})), json!([other, v6]));
        assert_eq!(completed(json!({"ips": [{"address": "172.32.0.11/24"}]})), json!([]));
    }
}

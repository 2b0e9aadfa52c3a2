//! Events that the kernel could not deliver, or that nobody took.

use crate::CONFIGURATION;
use crate::support::kubelet::{Kubelet, await_true};
use crate::support::{DEADLINE, Node, is_root, metric, serving, signal_to};
use macvtap_node_agent::links::netlink::{self, News};
use macvtap_node_agent::process::metrics::Metrics;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

#[test]
fn events_the_kernel_could_not_deliver_are_made_up_for() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let worker = agent.worker().unwrap();
    // While nobody reads, more events than the buffer holds, the last of them among those that are lost.
    signal_to(worker, rustix::process::Signal::STOP);
    node.sh("for i in $(seq 3000); do echo link set dp0p mtu $((1400 + i % 50)); done | ip -batch -; ip link del dp0");
    signal_to(worker, rustix::process::Signal::CONT);
    kubelet.await_healthy("dataplane", 0);
    let overflows = || metric(&node, "macvtap_link_event_overflows_total");
    await_true("the overflow is counted", || overflows().is_some_and(|count| count > 0));
    assert_eq!(agent.worker(), Some(worker), "{}", agent.log());
}

/// Hears of a node's links as the agent does, only slowly, and not at all while its test does something else: its
/// socket is read in its own calls alone.
struct Listener {
    news: mpsc::Receiver<News>,
    metrics: Arc<Metrics>,
    links: BTreeMap<u32, String>,
    /// How many answers to questions other than for links have come.
    answers: usize,
    runtime: tokio::runtime::Runtime,
}

impl Listener {
    fn new(node: &Node) -> Self {
        let metrics = Arc::new(Metrics::default());
        let netns = std::fs::File::open(node.netns()).unwrap();
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sender, news) = mpsc::channel(4);
        runtime.spawn(netlink::follow(sender, Arc::clone(&metrics)));
        Self { news, metrics, links: BTreeMap::new(), answers: 0, runtime }
    }

    /// Reads the socket until it is so, and takes no news.
    fn read_until(&self, what: &str, so: impl Fn(&Metrics) -> bool) {
        let looking = async {
            while !so(&self.metrics) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let looked = async { tokio::time::timeout(DEADLINE, looking).await };
        assert!(self.runtime.block_on(looked).is_ok(), "not in {DEADLINE:?}: {what}");
    }

    /// Takes news one by one, each after a while, until it is so.
    fn take_until(&mut self, what: &str, so: impl Fn(&BTreeMap<u32, String>, &Metrics) -> bool) {
        let taking = async {
            // The four questions of the first list are answered before anything is held back.
            while !so(&self.links, &self.metrics) || self.answers < 4 {
                tokio::time::sleep(Duration::from_millis(2)).await;
                match self.news.try_recv() {
                    Ok(News::All(links)) => {
                        self.links = links.into_iter().map(|link| (link.ifindex, link.name)).collect();
                    }
                    Ok(News::Changed(link)) => drop(self.links.insert(link.ifindex, link.name)),
                    Ok(News::Gone(ifindex)) => drop(self.links.remove(&ifindex)),
                    Ok(News::Macvtap(_) | News::Addressed(_) | News::DefaultRoutes(_) | News::Speeds(_)) => {
                        self.answers += 1;
                    }
                    Err(_) => {}
                }
            }
        };
        let taken = async { tokio::time::timeout(DEADLINE, taking).await };
        assert!(self.runtime.block_on(taken).is_ok(), "not in {DEADLINE:?}: {what}: {:?}", self.links);
    }

    fn await_link(&mut self, name: &str) {
        self.take_until(name, |links, _| links.values().any(|link| link == name));
    }

    fn knows(&self, name: &str) -> bool {
        self.links.values().any(|link| link == name)
    }
}

#[test]
fn a_link_whose_end_the_kernel_could_not_tell_stays_gone_although_older_events_of_it_wait() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let mut listener = Listener::new(&node);
    listener.await_link("dp0");
    node.sh("for i in $(seq 3000); do echo link set dp0 mtu $((1400 + i % 50)); done | ip -batch -; ip link del dp0");
    listener.take_until("a list after the overflow", |_, metrics| {
        metrics.overflows.get() > 0 && metrics.resyncs.get() > 1
    });
    // Heard after everything that waited.
    node.add_link("dp1");
    listener.await_link("dp1");
    assert!(!listener.knows("dp0"));
}

#[test]
fn events_that_a_busy_listener_does_not_take_are_made_up_for_by_a_full_list() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let mut listener = Listener::new(&node);
    listener.await_link("dp0");
    let heard = listener.metrics.link_events.get();
    node.sh("for i in $(seq 20); do ip link set dp0 mtu $((1400 + i)); done; ip link del dp0");
    node.add_link("last");
    listener.read_until("the socket is read although nobody listens", |metrics| {
        metrics.link_events.get() > heard + 20
    });
    listener.take_until("what is there", |links, _| {
        let has = |name| links.values().any(|link| link == name);
        has("last") && !has("dp0")
    });
}

/// `RTM_DELLINK` for the link with this index.
fn end_of(index: u32) -> Vec<u8> {
    const DEL_LINK: u16 = 17;
    let mut message = 32_u32.to_ne_bytes().to_vec();
    message.extend(DEL_LINK.to_ne_bytes());
    message.resize(16 + 4, 0);
    message.extend(index.to_ne_bytes());
    message.resize(32, 0);
    message
}

#[test]
fn what_a_process_says_of_links_is_not_believed() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(CONFIGURATION);
    let lists = kubelet.await_healthy("dataplane", 50).lists;
    // Sockets that are in groups: the agent's, and nobody else's in this namespace.
    let ports = node.sh("awk '$2 == 0 && $4 !~ /^0+$/ { print $3 }' /proc/net/netlink");
    let index = node.sh("cat /sys/class/net/dp0/ifindex").trim().parse().unwrap();
    let netns = std::fs::File::open(node.netns()).unwrap();
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    let socket = Socket::new(NETLINK_ROUTE).unwrap();
    for port in ports.lines() {
        socket.send_to(&end_of(index), &SocketAddr::new(port.parse().unwrap(), 0), 0).unwrap();
    }
    assert!(!ports.is_empty());
    // Heard after everything that came before.
    let heard = || metric(&node, "macvtap_link_events_total");
    let before = heard();
    node.sh("ip link set dp0 mtu 1400");
    await_true("the event", || heard() > before);
    assert_eq!(kubelet.await_healthy("dataplane", 50).lists, lists);
}

#[test]
fn a_link_whose_alias_is_no_text_is_offered() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    node.sh("printf '\\377\\376' > /sys/class/net/dp0/ifalias");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
}

#[test]
fn a_link_whose_alias_or_altname_is_not_utf_8_is_followed_like_any_other() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    for change in ["link set dp0 alias", "link property add dev dp0 altname"] {
        node.sh(&format!("ip {change} \"$(printf 'caf\\351')\""));
        node.sh("ip link set dp0 down");
        kubelet.await_healthy("dataplane", 0);
        node.sh("ip link set dp0 up");
        kubelet.await_healthy("dataplane", 50);
    }
    assert!(!agent.log().contains("decode"), "{}", agent.log());
}

//! Follows the links of the node's namespace: events as they come, a full list at the start, every minute, and
//! whenever the kernel could not deliver an event.

use crate::kubelet::Shared;
use crate::link::{Hardware, Kind, Link};
use crate::sysfs;
use futures::{StreamExt, TryStream, TryStreamExt};
use macvtap::park;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{LinkExtentMask, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::Instant;
use tracing::{debug, warn};

/// What the kernel told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Every link.
    All(Vec<Link>),
    /// One link appeared or changed.
    Changed(Box<Link>),
    /// One link went away, or to another namespace.
    Gone(u32),
    /// Links with addresses of the host, and those of default routes.
    Ties {
        /// By index.
        addressed: BTreeSet<u32>,
        /// By index.
        default_routes: BTreeSet<u32>,
    },
}

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// No socket.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// No list.
    #[error("list {what}")]
    List {
        /// Of what.
        what: &'static str,
        /// Why not.
        #[source]
        source: rtnetlink::Error,
    },
    /// No answer.
    #[error("the kernel did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The socket ended.
    #[error("the netlink socket was closed")]
    Closed,
}

/// Between full lists.
const RESYNC: Duration = Duration::from_mins(1);

/// Routes and addresses change in bursts; they are read once the burst is over.
const TIES_DELAY: Duration = Duration::from_millis(100);

/// Between tries after a failure.
const RETRY: Duration = Duration::from_millis(200);

/// An answer that was lost with an overflow never comes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads every link of the caller's namespace once.
pub async fn list() -> Result<(Vec<Link>, News), LinksError> {
    let (connection, handle, _events) = rtnetlink::new_connection().map_err(LinksError::Open)?;
    let task = tokio::spawn(connection);
    let mut reader = Reader::default();
    let lists = async { Ok((reader.links(&handle).await?, ties(&handle).await?)) };
    let lists = within(lists).await;
    task.abort();
    lists
}

/// Follows for ever. The first news is every link.
pub async fn follow(news: mpsc::Sender<News>, shared: Arc<Shared>) {
    let mut reader = Reader::default();
    loop {
        match follow_once(&news, &shared, &mut reader).await {
            Ok(End::Unheard) => return,
            // What the old socket still holds is older than what it lost: a link that is gone would be back.
            Ok(End::Overflow) => {
                shared.metrics.overflows.inc();
                continue;
            }
            Err(error) => {
                let reason = crate::error_chain(&error);
                warn!(%reason, "links not followed, trying again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Why one socket is no longer followed.
enum End {
    /// Nobody listens any more.
    Unheard,
    /// The kernel could not deliver an event.
    Overflow,
}

async fn follow_once(
    news: &mpsc::Sender<News>,
    shared: &Shared,
    reader: &mut Reader,
) -> Result<End, LinksError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let opened = rtnetlink::new_multicast_connection(&groups).map_err(LinksError::Open)?;
    let (connection, handle, mut events) = opened;
    let _task = AbortOnDrop(tokio::spawn(connection));
    // Subscribed before listed: what changes in between is told twice, not never.
    let mut resync_at = Instant::now();
    let mut ties_at = None;
    loop {
        let ties_due = ties_at;
        // A list first: however often the kernel overflows, each socket gets to one.
        tokio::select! {
            biased;
            room = room(news, Some(resync_at)) => {
                let Ok(room) = room else { return Ok(End::Unheard) };
                let links = within(reader.links(&handle)).await?;
                shared.metrics.resyncs.inc();
                (resync_at, ties_at) = (Instant::now() + RESYNC, Some(Instant::now()));
                room.send(News::All(links));
            }
            event = events.next() => match event {
                None => return Err(LinksError::Closed),
                Some((message, _)) => match reader.read(message.payload) {
                    Heard::Nothing => {}
                    Heard::News(heard) => {
                        shared.metrics.link_events.inc();
                        match tell(news, heard).await {
                            Ok(()) => {}
                            Err(TrySendError::Full(())) => resync_at = Instant::now(),
                            Err(TrySendError::Closed(())) => return Ok(End::Unheard),
                        }
                    }
                    Heard::TiesChanged => {
                        ties_at.get_or_insert(Instant::now() + TIES_DELAY);
                    }
                    Heard::Overflow => return Ok(End::Overflow),
                },
            },
            room = room(news, ties_due) => {
                let Ok(room) = room else { return Ok(End::Unheard) };
                ties_at = None;
                room.send(within(ties(&handle)).await?);
            }
        }
    }
}

/// Room for one news, not before that time.
async fn room(
    news: &mpsc::Sender<News>,
    at: Option<Instant>,
) -> Result<mpsc::Permit<'_, News>, mpsc::error::SendError<()>> {
    sleep_until(at).await;
    news.reserve().await
}

/// Tells, unless the listener is too busy: events that nobody reads would pile up here, where nothing bounds them.
async fn tell(news: &mpsc::Sender<News>, heard: News) -> Result<(), TrySendError<()>> {
    if news.capacity() == 0 {
        // It runs on the same thread, and may only have had no turn yet.
        tokio::task::yield_now().await;
    }
    news.try_reserve().map(|room| room.send(heard))
}

/// Turns messages into links. Remembers devices, so that an event that says nothing new costs no look into sysfs.
#[derive(Debug, Default)]
struct Reader {
    devices: BTreeMap<u32, (Seen, Option<Hardware>)>,
}

/// What a device may depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    name: String,
    parent: Option<String>,
    carrier: bool,
}

enum Heard {
    Nothing,
    News(News),
    TiesChanged,
    Overflow,
}

impl Reader {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a socket carries more kinds of message than we ask for"
    )]
    fn read(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Heard {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Heard::Overflow,
            _ => return Heard::Nothing,
        };
        match message {
            // A bridge tells of its ports by messages of its own family: losing a port is not losing a link.
            RouteNetlinkMessage::NewLink(link) if is_link(&link) => {
                self.link(&link).map_or(Heard::Nothing, |link| Heard::News(News::Changed(Box::new(link))))
            }
            RouteNetlinkMessage::DelLink(link) if is_link(&link) => {
                self.devices.remove(&link.header.index);
                Heard::News(News::Gone(link.header.index))
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
                if route.header.destination_prefix_length == 0 =>
            {
                Heard::TiesChanged
            }
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Heard::TiesChanged,
            _ => Heard::Nothing,
        }
    }

    async fn links(&mut self, handle: &Handle) -> Result<Vec<Link>, LinksError> {
        let request = handle.link().get();
        let request = request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let messages = collect("links", request.execute()).await?;
        let links: Vec<Link> = messages.iter().filter_map(|message| self.link(message)).collect();
        let present: BTreeSet<u32> = links.iter().map(|link| link.ifindex).collect();
        self.devices.retain(|ifindex, _| present.contains(ifindex));
        Ok(links)
    }

    fn link(&mut self, message: &LinkMessage) -> Option<Link> {
        let mut link = match Link::parse(message) {
            Ok(link) => link,
            Err(error) => {
                debug!(%error, "link message skipped");
                return None;
            }
        };
        // Links that only keep a tap's number busy.
        if park::is_ours(&link.name) {
            return None;
        }
        // Only what may have a device: on a node with many pods most links are veths.
        let kindless =
            matches!(&link.kind, Kind::Physical | Kind::Other(_)) && link.kind.rtnetlink().is_empty();
        if kindless || link.kind == Kind::Bond {
            let seen =
                Seen { name: link.name.clone(), parent: link.hardware.parent.clone(), carrier: link.carrier };
            let known = self.devices.get(&link.ifindex).filter(|(before, _)| *before == seen);
            let hardware = match known {
                Some((_, hardware)) => hardware.clone(),
                None => probe(&link, kindless),
            };
            if let Some(hardware) = hardware.clone() {
                link.set_hardware(hardware);
            }
            self.devices.insert(link.ifindex, (seen, hardware));
        }
        Some(link)
    }
}

fn probe(link: &Link, kindless: bool) -> Option<Hardware> {
    let links = Path::new(sysfs::LINKS);
    if kindless {
        return sysfs::hardware(links, &link.name, link.ifindex);
    }
    Some(Hardware { speed_mbps: sysfs::speed(links, &link.name), ..Hardware::default() })
}

fn is_link(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

async fn ties(handle: &Handle) -> Result<News, LinksError> {
    let mut addressed = BTreeSet::new();
    for address in collect("addresses", handle.address().get().execute()).await? {
        // Every link that is up has a link-local address.
        if matches!(address.header.scope, AddressScope::Universe | AddressScope::Site) {
            addressed.insert(address.header.index);
        }
    }
    let mut default_routes = BTreeSet::new();
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for family in [v4, v6] {
        for route in collect("routes", handle.route().get(family).execute()).await? {
            default_routes.extend(default_links(&route));
        }
    }
    Ok(News::Ties { addressed, default_routes })
}

/// The links of a default route, of every next hop; none of any other route.
fn default_links(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut links = Vec::new();
    for attribute in &route.attributes {
        if let RouteAttribute::Oif(ifindex) = attribute {
            links.push(*ifindex);
        }
        if let RouteAttribute::MultiPath(hops) = attribute {
            links.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    links
}

async fn collect<T>(
    what: &'static str,
    stream: impl TryStream<Ok = T, Error = rtnetlink::Error>,
) -> Result<Vec<T>, LinksError> {
    stream.try_collect().await.map_err(|source| LinksError::List { what, source })
}

async fn within<T>(answer: impl Future<Output = Result<T, LinksError>>) -> Result<T, LinksError> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(LinksError::Silent))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

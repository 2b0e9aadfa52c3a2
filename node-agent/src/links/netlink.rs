//! Follows the links of the node's namespace: events as they come, a full list at the start, every minute, and
//! whenever the kernel could not deliver an event.

use crate::links::link::{Hardware, Kind, Link, LinkError};
use crate::links::sysfs;
use crate::process::metrics::Metrics;
use futures::StreamExt;
use macvtap::netlink::{Kind as Request, NetlinkError, Socket};
use macvtap::{host_ties, park};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
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
    #[error(transparent)]
    List(#[from] NetlinkError),
    /// No answer.
    #[error("the kernel did not list its links within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The socket ended.
    #[error("the netlink socket was closed")]
    Closed,
}

/// What is heard of.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Between full lists.
const RESYNC: Duration = Duration::from_mins(1);

/// Routes and addresses change in bursts; they are read once the burst is over.
const TIES_DELAY: Duration = Duration::from_millis(100);

/// Between tries after a failure.
const RETRY: Duration = Duration::from_millis(200);

/// How long all links may take: events wait meanwhile. Routes may take as long as they do.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads every link of the caller's namespace once.
pub async fn list() -> Result<(Vec<Link>, News), LinksError> {
    let links = Reader::default().complete(aside(links).await?);
    Ok((links, aside(ties).await?))
}

/// Follows for ever. The first news is every link.
pub async fn follow(news: mpsc::Sender<News>, metrics: Arc<Metrics>) {
    let mut reader = Reader::default();
    let mut told = None;
    loop {
        let lists = metrics.resyncs.get();
        match follow_once(&news, &metrics, &mut reader).await {
            Ok(End::Unheard) => return,
            // What the old socket still holds is older than what it lost: a link that is gone would be back.
            Ok(End::Overflow) => {
                metrics.overflows.inc();
                continue;
            }
            Err(error) => {
                let reason = Some(crate::error_chain(&error));
                let same = told == reason && metrics.resyncs.get() == lists;
                if !same {
                    warn!(reason, "links not followed, trying again");
                }
                told = reason;
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
    metrics: &Metrics,
    reader: &mut Reader,
) -> Result<End, LinksError> {
    // The handle keeps the connection open; nothing is asked here.
    let opened = rtnetlink::new_multicast_connection(&GROUPS).map_err(LinksError::Open)?;
    let (connection, _handle, mut events) = opened;
    let _task = AbortOnDrop(tokio::spawn(connection));
    // Subscribed before listed: what changes in between is told twice, not never.
    let mut resync_at = Instant::now();
    let mut ties_at = None;
    let mut reading: Option<Reading> = None;
    loop {
        let ties_due = ties_at.filter(|_| reading.is_none());
        // A list first: however often the kernel overflows, each socket gets to one.
        tokio::select! {
            biased;
            room = room(news, Some(resync_at)) => {
                let Ok(room) = room else { return Ok(End::Unheard) };
                let listed = tokio::time::timeout(ANSWER_TIMEOUT, aside(links)).await;
                let links = reader.complete(listed.unwrap_or(Err(LinksError::Silent))?);
                metrics.resyncs.inc();
                (resync_at, ties_at) = (Instant::now() + RESYNC, Some(Instant::now()));
                room.send(News::All(links));
            }
            read = finished(&mut reading) => {
                reading = None;
                read?;
            }
            () = sleep_until(ties_due) => {
                ties_at = None;
                reading = Some(AbortOnDrop(tokio::spawn(tell_ties(news.clone()))));
            }
            event = events.next() => match event {
                None => return Err(LinksError::Closed),
                // Processes with CAP_NET_ADMIN here can write to the socket, too.
                Some((_, sender)) if sender.port_number() != 0 => {}
                Some((message, _)) => match reader.read(message.payload) {
                    Heard::Nothing => {}
                    Heard::News(heard) => {
                        metrics.link_events.inc();
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
        }
    }
}

/// Routes and addresses being read.
type Reading = AbortOnDrop<Result<(), LinksError>>;

/// Reads routes and addresses, which takes seconds where a node knows all of the Internet's. Links are heard of meanwhile.
async fn tell_ties(news: mpsc::Sender<News>) -> Result<(), LinksError> {
    let ties = aside(ties).await?;
    // Whoever reads the events notices if nobody listens.
    let _ = news.send(ties).await;
    Ok(())
}

async fn finished(reading: &mut Option<Reading>) -> Result<(), LinksError> {
    match reading {
        Some(AbortOnDrop(task)) => task.await.unwrap_or(Err(LinksError::Closed)),
        None => std::future::pending().await,
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
                let link = self::link(Link::parse(&link)).map(|link| self.with_hardware(link));
                link.map_or(Heard::Nothing, |link| Heard::News(News::Changed(Box::new(link))))
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

    /// Takes a full list in place of everything known.
    fn complete(&mut self, links: Vec<Link>) -> Vec<Link> {
        let links: Vec<Link> = links.into_iter().map(|link| self.with_hardware(link)).collect();
        let present: BTreeSet<u32> = links.iter().map(|link| link.ifindex).collect();
        self.devices.retain(|ifindex, _| present.contains(ifindex));
        links
    }

    /// Adds what sysfs tells.
    fn with_hardware(&mut self, mut link: Link) -> Link {
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
        link
    }
}

/// The link that a message tells of; none of a damaged message, and none of a link that only keeps a tap's number busy.
fn link(read: Result<Link, LinkError>) -> Option<Link> {
    match read {
        Ok(link) => Some(link).filter(|link| !park::is_ours(&link.name)),
        Err(error) => {
            debug!(%error, "link message skipped");
            None
        }
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

/// Every link of the caller's namespace, without what sysfs tells.
fn links() -> Result<Vec<Link>, LinksError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let add = |links: &mut Vec<Link>, payload: &[u8]| links.extend(link(Link::read(payload)));
    Ok(Socket::open()?.fold(Request::GetLink, &request, &"list links", add)?)
}

/// What ties links of the caller's namespace to the node. Nothing is kept of all other routes and addresses, of which
/// there may be a million.
fn ties() -> Result<News, LinksError> {
    let mut socket = Socket::open()?;
    let (mut addressed, mut default_routes) = (BTreeSet::new(), BTreeSet::new());
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = AddressMessage::default();
        request.header.family = family;
        let add = |links: &mut BTreeSet<u32>, payload: &[u8]| links.extend(host_ties::addressed(payload));
        addressed.append(&mut socket.fold(Request::GetAddress, &request, &"list addresses", add)?);
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let add =
            |links: &mut BTreeSet<u32>, payload: &[u8]| links.extend(host_ties::default_routes(payload));
        default_routes.append(&mut socket.fold(Request::GetRoute, &request, &"list routes", add)?);
    }
    Ok(News::Ties { addressed, default_routes })
}

/// Asks the kernel on another thread: its lock may be taken for seconds, and the kubelet does not wait for that.
async fn aside<T: Send + 'static>(ask: fn() -> Result<T, LinksError>) -> Result<T, LinksError> {
    tokio::task::spawn_blocking(ask).await.unwrap_or(Err(LinksError::Closed))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

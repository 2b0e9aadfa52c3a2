//! Follows the links of the node's namespace: events as they come, a full list at the start, every minute, and
//! whenever the kernel could not deliver an event.

use crate::links::inventory::Inventory;
use crate::links::link::Link;
use crate::links::notification::{self, Notification};
use crate::links::reader::{self, Event, Reader};
use crate::links::sysfs;
use crate::process::metrics::Metrics;
use futures::StreamExt;
use macvtap::host_ties::DefaultRoutes;
use macvtap::netlink::{Kind as Request, NetlinkError, Socket};
use macvtap::{host_ties, support};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::MulticastGroup;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::Instant;
use tracing::warn;

/// What the kernel reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Every link.
    All(Vec<Link>),
    /// One link appeared or changed.
    Changed(Box<Link>),
    /// One link went away, or to another namespace.
    Gone(u32),
    /// Whether the kernel has macvtap.
    Macvtap(bool),
    /// The speeds in Mbit/s that changed, by the index of the link.
    Speeds(BTreeMap<u32, u32>),
    /// The indexes of the links on which the host has addresses.
    Addressed(BTreeSet<u32>),
    /// The indexes of the links that default routes use.
    DefaultRoutes(BTreeSet<u32>),
}

/// What is read again a moment after it changed, on another thread: the kernel's lock may be held for seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Query {
    Macvtap,
    Speeds,
    Addresses,
    DefaultRoutes,
}

/// The answer to a [`Query`].
enum Answer {
    Speeds(Vec<(u32, Option<u32>)>),
    DefaultRoutes(DefaultRoutes),
    News(News),
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
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Nexthop,
];

/// Between full lists.
const RESYNC: Duration = Duration::from_mins(1);

/// Routes, addresses and speeds change in bursts; they are read once the burst is over.
const QUERY_DELAY: Duration = Duration::from_millis(100);

/// Between tries after a failure.
const RETRY: Duration = Duration::from_millis(200);

/// How long all links may take: events wait meanwhile. Routes may take as long as they do.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the links of the caller's namespace once.
pub async fn inventory() -> Result<Inventory, LinksError> {
    let mut inventory = Inventory::default();
    let _ = inventory.reset(aside(links).await?.into_iter().map(reader::with_speed));
    let _ = inventory.set_macvtap(aside(|| Ok(support::has_macvtap()?)).await?);
    let _ = inventory.set_addressed(aside(addressed).await?);
    let _ = inventory.set_default_routes(aside(default_routes).await?.links);
    Ok(inventory)
}

/// Follows for ever. The first news is every link.
pub async fn follow(news: mpsc::Sender<News>, metrics: Arc<Metrics>) {
    let mut reader = Reader::default();
    let (mut logged, listing) = (None, Arc::default());
    loop {
        let (lists, started) = (metrics.resyncs.get(), Instant::now());
        match follow_once(&news, &metrics, &mut reader, &listing).await {
            Ok(FollowEnd::Unheard) => return,
            // What the old socket still holds is older than what it lost: a link that is gone would be back.
            Ok(FollowEnd::Overflow) => {
                metrics.overflows.inc();
                // A socket that overflows at once would have the kernel list all its links without pause.
                tokio::time::sleep_until(started + RETRY).await;
                continue;
            }
            Err(error) => {
                let reason = Some(crate::error_chain(&error));
                let same = logged == reason && metrics.resyncs.get() == lists;
                if !same {
                    warn!(reason, "links not followed, trying again");
                }
                logged = reason;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Why one socket is no longer followed.
enum FollowEnd {
    /// Nobody listens any more.
    Unheard,
    /// The kernel could not deliver an event.
    Overflow,
}

async fn follow_once(
    news: &mpsc::Sender<News>,
    metrics: &Metrics,
    reader: &mut Reader,
    listing: &Arc<Mutex<()>>,
) -> Result<FollowEnd, LinksError> {
    // The handle keeps the connection open; nothing is asked here.
    let (connection, _handle, mut events) = notification::subscribe(&GROUPS).map_err(LinksError::Open)?;
    let _task = AbortOnDrop(tokio::spawn(connection));
    // Subscribed before listed: what changes in between is reported twice, not never.
    let mut resync_at = Instant::now();
    let mut due: BTreeMap<Query, Instant> = BTreeMap::new();
    let mut running: Option<AbortOnDrop<Result<Answer, LinksError>>> = None;
    loop {
        let next = due.iter().min_by_key(|(_, at)| **at).map(|(query, at)| (*query, *at));
        let next = next.filter(|_| running.is_none());
        // A list first: however often the kernel overflows, each socket gets to one.
        tokio::select! {
            biased;
            room = room(news, Some(resync_at)) => {
                let Ok(room) = room else { return Ok(FollowEnd::Unheard) };
                let listed = tokio::time::timeout(ANSWER_TIMEOUT, list(listing)).await;
                let links = reader.complete(listed.unwrap_or(Err(LinksError::Silent))?);
                metrics.resyncs.inc();
                resync_at = Instant::now() + RESYNC;
                let queries = [Query::Macvtap, Query::Addresses, Query::DefaultRoutes, Query::Speeds];
                for query in queries {
                    // What is due already keeps its turn.
                    due.entry(query).or_insert_with(Instant::now);
                }
                room.send(News::All(links));
            }
            answer = finished(&mut running) => {
                running = None;
                if news.send(found(reader, answer?, &mut due)).await.is_err() { return Ok(FollowEnd::Unheard) }
            }
            () = sleep_until(next.map(|(_, at)| at)) => if let Some((query, _)) = next {
                due.remove(&query);
                // Only this query uses up the links whose speed must be read.
                let outdated = if query == Query::Speeds { reader.take_outdated() } else { Vec::new() };
                running = Some(AbortOnDrop(tokio::spawn(ask(query, outdated))));
            },
            event = events.next() => match event {
                None => return Err(LinksError::Closed),
                // Processes with CAP_NET_ADMIN here can write to the socket, too.
                Some((_, sender)) if sender.port_number() != 0 => {}
                Some((message, _)) => match take(reader, message.payload, &mut due) {
                    Taken::Nothing => {}
                    Taken::News(change) => {
                        metrics.link_events.inc();
                        match send(news, change).await {
                            Ok(()) => {}
                            Err(TrySendError::Full(())) => resync_at = Instant::now(),
                            Err(TrySendError::Closed(())) => return Ok(FollowEnd::Unheard),
                        }
                    }
                    Taken::Overflow => return Ok(FollowEnd::Overflow),
                },
            },
        }
    }
}

/// What an event means for the listener.
enum Taken {
    Nothing,
    News(News),
    Overflow,
}

/// Reads an event, and notes what must be read again because of it.
fn take(
    reader: &mut Reader,
    payload: NetlinkPayload<Notification>,
    due: &mut BTreeMap<Query, Instant>,
) -> Taken {
    let mut later = |query| {
        due.entry(query).or_insert_with(|| Instant::now() + QUERY_DELAY);
        Taken::Nothing
    };
    let event = reader.read(payload);
    if reader.has_outdated() {
        later(Query::Speeds);
    }
    match event {
        Event::Irrelevant => Taken::Nothing,
        Event::Link(link) => Taken::News(News::Changed(link)),
        Event::Gone(ifindex) => Taken::News(News::Gone(ifindex)),
        Event::Addresses => later(Query::Addresses),
        Event::DefaultRoutes => later(Query::DefaultRoutes),
        Event::Overflow => Taken::Overflow,
    }
}

/// Asks the kernel, which takes seconds where a node has all routes of the Internet. Events are read meanwhile.
async fn ask(query: Query, outdated: Vec<(u32, String)>) -> Result<Answer, LinksError> {
    let read = move || match query {
        Query::Macvtap => Ok(Answer::News(News::Macvtap(support::has_macvtap()?))),
        Query::Speeds => {
            let links = Path::new(sysfs::LINKS);
            let speeds =
                outdated.into_iter().map(|(ifindex, name)| (ifindex, sysfs::speed(links, &name, ifindex)));
            Ok(Answer::Speeds(speeds.collect()))
        }
        Query::Addresses => Ok(Answer::News(News::Addressed(addressed()?))),
        Query::DefaultRoutes => Ok(Answer::DefaultRoutes(default_routes()?)),
    };
    aside(read).await
}

/// What an answer changes.
fn found(reader: &mut Reader, answer: Answer, due: &mut BTreeMap<Query, Instant>) -> News {
    match answer {
        Answer::News(news) => news,
        Answer::DefaultRoutes(DefaultRoutes { links, nexthops }) => {
            if reader.learn_nexthops(nexthops) {
                due.entry(Query::DefaultRoutes).or_insert_with(|| Instant::now() + QUERY_DELAY);
            }
            News::DefaultRoutes(links)
        }
        Answer::Speeds(speeds) => {
            let speeds = speeds.into_iter();
            let changed =
                speeds.filter_map(|(ifindex, speed)| Some((ifindex, reader.learn_speed(ifindex, speed)?)));
            News::Speeds(changed.collect())
        }
    }
}

async fn finished(
    running: &mut Option<AbortOnDrop<Result<Answer, LinksError>>>,
) -> Result<Answer, LinksError> {
    match running {
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

/// Sends an event, unless the receiver is too busy: events that nobody reads would pile up here, where nothing bounds them.
async fn send(news: &mpsc::Sender<News>, heard: News) -> Result<(), TrySendError<()>> {
    if news.capacity() == 0 {
        // It runs on the same thread, and may only have had no turn yet.
        tokio::task::yield_now().await;
    }
    news.try_reserve().map(|room| room.send(heard))
}

/// Lists the links, once at a time: a list that nobody waits for any more may still wait for the kernel's lock.
async fn list(listing: &Arc<Mutex<()>>) -> Result<Vec<Link>, LinksError> {
    let only = Arc::clone(listing).lock_owned().await;
    aside(move || {
        let listed = links();
        drop(only);
        listed
    })
    .await
}

/// Every link of the caller's namespace, with what sysfs reports of its device but the speed.
fn links() -> Result<Vec<Link>, LinksError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let add = |links: &mut Vec<Link>, payload: &[u8]| links.extend(reader::present(Link::read(payload)));
    let links: Vec<Link> = Socket::open()?.fold(Request::GetLink, &request, &"list links", add)?;
    Ok(links.into_iter().map(reader::describe).collect())
}

/// The links of the caller's namespace on which the host has addresses. Nothing is kept of all others.
fn addressed() -> Result<BTreeSet<u32>, LinksError> {
    let mut socket = Socket::open()?;
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = AddressMessage::default();
        request.header.family = family;
        let add = |links: &mut BTreeSet<u32>, payload: &[u8]| links.extend(host_ties::addressed(payload));
        found.append(&mut socket.fold(Request::GetAddress, &request, &"list addresses", add)?);
    }
    Ok(found)
}

/// The links of the caller's namespace that default routes use.
fn default_routes() -> Result<DefaultRoutes, LinksError> {
    let mut socket = Socket::open()?;
    let mut found = macvtap::default_routes::find(&mut socket, AddressFamily::Inet, None)?;
    let mut other = macvtap::default_routes::find(&mut socket, AddressFamily::Inet6, None)?;
    found.links.append(&mut other.links);
    found.nexthops.append(&mut other.nexthops);
    Ok(found)
}

/// Asks the kernel on another thread: its lock may be held for seconds, and the kubelet does not wait for that.
async fn aside<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, LinksError> + Send + 'static,
) -> Result<T, LinksError> {
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

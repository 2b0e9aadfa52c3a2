use super::*;
use crate::devices::assignment;
use crate::devices::nics::NicNames;
use crate::devices::offer::Offer;
use crate::links::inventory::tests::link;
use crate::links::link::Kind;
use crate::pods::PodAges;
use crate::pools::selection::tests::pool;
use macvtap::paths::Paths;
use macvtap::table::{DeviceTable, DeviceType, TapOnly};
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::settings::Allocation;
use serde_json::json;
use std::collections::BTreeSet;
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long.
const DEADLINE: Duration = Duration::from_secs(20);

fn serving() -> Serving {
    serving_in(Paths::new("/dev/null/state", "/dev/null/run"))
}

fn serving_in(paths: Paths) -> Serving {
    let table = TableWriter::start(paths.clone(), None).unwrap();
    let shared = Shared::new(
        paths,
        "/nonexistent".into(),
        "/nonexistent".into(),
        PodAges::default(),
        NicNames::default(),
    );
    Serving::new(
        Engine::new(assignment::empty("one", true), "one".into(), true),
        "/nonexistent".into(),
        watch::channel(Happened::default()).1,
        Arc::new(shared),
        table,
        watch::Sender::new(Readiness::Standby),
        watch::Sender::default(),
    )
}

/// Pools on dp0, as the operator has them.
fn configuration(pools: &[(&str, u32)]) -> Configuration {
    let one = |(name, devices): &(&str, u32)| {
        pool(
            name,
            &json!({"links": [{"names": ["dp0"]}], "overlap": "Shared", "capacity": {"perLink": devices}}),
        )
    };
    let pools = pools.iter().map(one).collect();
    Configuration { pools, hash: Some("h".into()), ..Configuration::default() }
}

fn ties() -> [News; 2] {
    [News::Addressed(BTreeSet::new()), News::DefaultRoutes(BTreeSet::new())]
}

/// What is told of a resource that runs, and the end by which it tells.
fn running(serving: &mut Serving, name: &str) -> watch::Sender<Registration> {
    let offer = Offer {
        resource: name.parse().unwrap(),
        full_name: format!("example.com/{name}"),
        tap_only: TapOnly::Forbidden,
        device_type: DeviceType::Macvtap,
        allocation: Allocation::default(),
        runs: Vec::new(),
    };
    let (told, registered) = watch::channel(Registration::Pending);
    let idle = || tokio::spawn(std::future::pending());
    let running = Running {
        offer: watch::Sender::new(Arc::new(offer)),
        stop: CancellationToken::new(),
        hand_over: CancellationToken::new(),
        registered,
        task: idle(),
        relay: idle(),
    };
    serving.resources.insert(name.parse().unwrap(), running);
    told
}

#[tokio::test]
async fn a_resource_that_stays_pending_keeps_the_first_report_back_for_some_seconds_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serving_in(Paths::new(dir.path(), dir.path()));
    // These seconds are almost over.
    let most = REGISTERED_SOON.saturating_sub(Duration::from_millis(500));
    serving.started = Instant::now().checked_sub(most).unwrap();
    let _pending = running(&mut serving, "a");
    let (news, heard) = mpsc::channel(3);
    let (pools, configured) = mpsc::channel(1);
    let (usage, used) = mpsc::channel(1);
    news.send(News::All(vec![link(1, "dp0", Kind::Veth)])).await.unwrap();
    for tie in ties() {
        news.send(tie).await.unwrap();
    }
    pools.send(configuration(&[("a", 1)])).await.unwrap();
    let seen = Seen {
        usage: Usage::default(),
        listed: Vec::new(),
        asked: Instant::now(),
        is_pending: false,
        ask_for_checkpoint: false,
    };
    usage.send(seen).await.unwrap();
    let mut status = serving.status.subscribe();
    let reported = tokio::time::timeout(DEADLINE, status.wait_for(Option::is_some));
    tokio::select! {
        () = serving.run(heard, configured, used, watch::channel(Presence::default()).1) => panic!("it ended"),
        reported = reported => assert!(reported.is_ok(), "nothing is reported"),
    }
}

/// Lets it decide about these pools and one link.
async fn decide(serving: &mut Serving, pools: &[(&str, u32)]) {
    serving.has_looked = true;
    serving.started = Instant::now().checked_sub(REGISTERED_SOON).unwrap();
    serving.configure(configuration(pools));
    let _ = serving.hear(News::All(vec![link(1, "dp0", Kind::Veth)]));
    settle(serving).await;
}

/// Lets it decide, and decide again when the table was written or not.
async fn settle(serving: &mut Serving) {
    serving.step().await;
    while serving.table.busy_since().is_some() {
        let written = serving.table.written().await;
        serving.note_written(written);
        serving.step().await;
    }
}

/// The table that an agent has stored.
async fn table(pools: &[(&str, u32)]) -> DeviceTable {
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serving_in(Paths::new(dir.path(), dir.path()));
    decide(&mut serving, pools).await;
    serving.engine.table().clone()
}

fn offer(serving: &Serving, name: &str) -> Arc<Offer> {
    Arc::clone(&serving.resources[&name.parse().unwrap()].offer.borrow())
}

#[tokio::test]
async fn what_could_not_be_stored_is_not_served_and_not_counted() {
    let mut serving = serving();
    decide(&mut serving, &[("a", 100)]).await;
    let status = serving.status.borrow().clone().unwrap();
    assert_eq!((status.pools[0].capacity, offer(&serving, "a").counts().capacity), (0, 0));
    serving.publish_state();
    assert_eq!(serving.status.borrow().clone().unwrap().pools, status.pools);
}

#[tokio::test]
async fn what_has_left_the_table_is_not_allocated_while_the_next_table_is_written() {
    let (name, stored) = ("a".parse().unwrap(), table(&[("a", 3)]).await);
    let mut serving = serving();
    let _registered = running(&mut serving, "a");
    let left = Offer::of_table(&name, &stored.resources[&name]);
    serving.resources[&name].offer.send_replace(Arc::new(left));
    decide(&mut serving, &[("b", 3)]).await;
    assert_eq!(offer(&serving, "a").runs, []);
}

#[tokio::test]
async fn an_agent_that_starts_with_a_full_disk_serves_what_is_on_it_and_nothing_else() {
    let stored = table(&[("a", 5)]).await;
    let mut serving = serving();
    serving.engine = Engine::new(stored.clone(), "one".into(), true);
    decide(&mut serving, &[("a", 8), ("b", 5)]).await;
    let offered = offer(&serving, "a");
    let ranges: Vec<_> = offered.runs.iter().filter_map(|offered| offered.run.range()).collect();
    assert_eq!(ranges, stored.resources[&"a".parse().unwrap()].links()[0].ranges);
    assert_eq!((offered.counts().allocatable, offer(&serving, "b").counts().capacity), (5, 0));
    let status = serving.status.borrow().clone().unwrap();
    assert_eq!(status.pools.iter().map(|pool| pool.capacity).collect::<Vec<_>>(), [5, 0]);
    // With room on the disk it is as it should be.
    let dir = tempfile::tempdir().unwrap();
    let mut freed = serving_in(Paths::new(dir.path(), dir.path()));
    std::mem::swap(&mut freed.table, &mut serving.table);
    serving.table_retry = None;
    settle(&mut serving).await;
    assert_eq!((offer(&serving, "a").counts().capacity, offer(&serving, "b").counts().capacity), (8, 5));
}

#[tokio::test]
async fn a_disk_that_does_not_answer_holds_up_nothing() {
    let stored = table(&[("a", 5)]).await;
    let mut serving = serving();
    let (writer, _waiting) = TableWriter::stuck();
    (serving.engine, serving.table) = (Engine::new(stored, "one".into(), true), writer);
    serving.has_looked = true;
    serving.configure(configuration(&[("a", 8)]));
    let _ = serving.hear(News::All(vec![link(1, "dp0", Kind::Veth)]));
    let wake = serving.step().await.unwrap();
    tokio::time::sleep_until(wake.into()).await;
    serving.step().await;
    assert_eq!(offer(&serving, "a").counts().allocatable, 5, "what is on the disk is served");
    assert!(
        matches!(&*serving.readiness.borrow(), Readiness::NotReady(why) if why.contains("does not answer"))
    );
    // A loss does not wait for the disk.
    let _ = serving.hear(News::Gone(1));
    serving.step().await;
    assert_eq!(offer(&serving, "a").counts().allocatable, 0);
}

#[tokio::test]
async fn a_hand_over_does_not_wait_for_a_disk_that_does_not_answer() {
    let mut serving = serving();
    (serving.table, _) = TableWriter::stuck();
    let released = tokio::time::timeout(DEADLINE, serving.release_node()).await;
    assert_eq!(released, Ok(false));
}

#[tokio::test]
async fn a_pool_that_asks_for_speed_waits_until_speeds_are_known() {
    let mut serving = serving();
    let _ = serving.hear(News::All(vec![link(1, "dp0", Kind::Veth)]));
    for tie in ties() {
        let _ = serving.hear(tie);
    }
    serving.configure(configuration(&[("a", 1)]));
    assert_eq!(serving.missing(), None);
    let fast = pool("fast", &json!({"links": [{"minSpeedMbps": 1000}]}));
    serving.configure(Configuration { pools: vec![fast], ..Configuration::default() });
    assert!(serving.missing().is_some_and(|what| what.contains("speeds")));
    assert_eq!(serving.hear(News::Speeds(BTreeMap::new())), Change::Something);
    assert_eq!(serving.missing(), None);
}

#[tokio::test]
async fn a_table_that_the_plugin_would_not_use_is_not_served_from_a_full_disk() {
    let stored = table(&[("a", 5)]).await;
    let engines = [
        ("of another boot", Engine::new(stored.clone(), "two".into(), true)),
        ("nowhere on the disk", Engine::rebuilt(stored, "one".into(), true)),
    ];
    for (what, engine) in engines {
        let mut serving = serving();
        serving.engine = engine;
        decide(&mut serving, &[("a", 5)]).await;
        assert_eq!(offer(&serving, "a").counts().capacity, 0, "{what}");
    }
}

#[tokio::test]
async fn a_table_that_was_rebuilt_is_stored_although_nothing_in_it_changes() {
    let rebuilt = table(&[("a", 5)]).await;
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::new(dir.path(), dir.path());
    let mut serving = serving_in(paths.clone());
    serving.engine = Engine::rebuilt(rebuilt.clone(), "one".into(), true);
    decide(&mut serving, &[("a", 5)]).await;
    assert_eq!(macvtap::table_file::load(&paths).unwrap(), Some(rebuilt));
}

#[tokio::test]
async fn nothing_is_decided_before_links_routes_and_addresses_are_known_and_whoever_asks_is_told() {
    let mut serving = serving();
    let (news, heard) = mpsc::channel(1);
    let (pools, configured) = mpsc::channel(1);
    let (_usage, used) = mpsc::channel(1);
    let mut readiness = serving.readiness.subscribe();
    let asking = async {
        let mut says = async |part: &str| {
            let said = |now: &Readiness| matches!(now, Readiness::NotReady(why) if why.contains(part));
            let said = tokio::time::timeout(DEADLINE, readiness.wait_for(said)).await;
            assert!(said.is_ok(), "not said: {part}");
        };
        says("links of the node").await;
        pools.send(configuration(&[("a", 1)])).await.unwrap();
        news.send(News::All(vec![link(1, "dp0", Kind::Veth)])).await.unwrap();
        // The uplink would be taken.
        says("routes and addresses").await;
        for tie in ties() {
            news.send(tie).await.unwrap();
        }
        // Also on a node without addresses; here nothing can be stored.
        says("device table").await;
    };
    tokio::select! {
        () = serving.run(heard, configured, used, watch::channel(Presence::default()).1) => panic!("it ended"),
        () = asking => {}
    }
}

#[tokio::test]
async fn a_hand_over_waits_for_a_kubelet_that_does_not_answer_once_and_not_for_each_resource() {
    let mut serving = serving();
    let names: Vec<String> = (0..10).map(|number| format!("r{number}")).collect();
    let _pending: Vec<_> = names.iter().map(|name| running(&mut serving, name)).collect();
    let handed = tokio::time::timeout(HAND_OVER_TIMEOUT * 5, serving.hand_over()).await;
    assert!(handed.is_ok());
}

#[tokio::test]
async fn a_pool_with_a_device_that_was_just_allocated_is_not_drained() {
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serving_in(Paths::new(dir.path(), dir.path()));
    decide(&mut serving, &[("a", 5)]).await;
    serving.shared.ledger.note("aMvp0".parse().unwrap(), Instant::now());
    // The pool is deleted before the kubelet is asked what its pods have.
    let mut deleted = configuration(&[("a", 5)]);
    deleted.pools[0].draining = true;
    serving.configure(deleted);
    settle(&mut serving).await;
    let status = serving.status.borrow().clone().unwrap();
    let ready = condition::find(&status.pools[0].conditions, ConditionType::Ready).unwrap();
    assert_eq!((status.pools[0].allocated, ready.reason.as_str()), (1, "Draining"));
}

use super::*;
use crate::devices;
use crate::inventory::tests::link;
use crate::kubelet::Ledger;
use crate::link::Kind;
use crate::metrics::Metrics;
use crate::selection::tests::pool;
use macvtap::paths::Paths;
use macvtap::table::{DeviceType, TapOnly};
use macvtap_crds::v1alpha1::settings::Allocation;
use serde_json::json;
use std::collections::BTreeSet;

/// Nothing here takes this long.
const DEADLINE: Duration = Duration::from_secs(20);

fn serving() -> Serving {
    serving_in(Paths::new("/dev/null/state", "/dev/null/run"))
}

fn serving_in(paths: Paths) -> Serving {
    let shared = Shared {
        paths,
        ledger: Ledger::default(),
        metrics: Metrics::default(),
        allocated: tokio::sync::Notify::new(),
        lost: watch::Sender::default(),
        nics: watch::Sender::default(),
    };
    Serving::new(
        Engine::new(devices::empty("one", true), "one".into(), true),
        "/nonexistent".into(),
        watch::channel(Happened::default()).1,
        Arc::new(shared),
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

fn ties() -> News {
    News::Ties { addressed: BTreeSet::new(), default_routes: BTreeSet::new() }
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
    serving.started = Instant::now().checked_sub(REGISTERED_SOON - Duration::from_millis(500)).unwrap();
    let _pending = running(&mut serving, "a");
    let (news, heard) = mpsc::channel(2);
    let (pools, configured) = mpsc::channel(1);
    let (usage, used) = mpsc::channel(1);
    news.send(News::All(vec![link(1, "dp0", Kind::Veth)])).await.unwrap();
    news.send(ties()).await.unwrap();
    pools.send(configuration(&[("a", 1)])).await.unwrap();
    let seen = Seen { usage: Usage::default(), listed: Vec::new(), asked: Instant::now() };
    usage.send(seen).await.unwrap();
    let mut status = serving.status.subscribe();
    let reported = tokio::time::timeout(DEADLINE, status.wait_for(Option::is_some));
    tokio::select! {
        () = serving.run(heard, configured, used) => panic!("it ended"),
        reported = reported => assert!(reported.is_ok(), "nothing is reported"),
    }
}

#[tokio::test]
async fn what_could_not_be_stored_is_not_served_and_not_counted() {
    let pool = pool("a", &json!({"links": [{"names": ["dp0"]}]}));
    let mut serving = serving();
    serving.has_looked = true;
    let configuration =
        Configuration { pools: vec![pool], hash: Some("h".into()), ..Configuration::default() };
    serving.configure(configuration);
    let _ = serving.hear(News::All(vec![link(1, "dp0", Kind::Veth)]));
    serving.step().await;
    let status = serving.status.borrow().clone().unwrap();
    assert_eq!((status.pools[0].capacity, serving.resources.len()), (0, 0));
    serving.tell();
    assert_eq!(serving.status.borrow().clone().unwrap().pools, status.pools);
}

#[test]
fn nothing_is_decided_before_links_routes_and_addresses_are_known() {
    let mut serving = serving();
    serving.configure(Configuration::default());
    assert!(!serving.knows_enough());
    let _ = serving.hear(News::All(Vec::new()));
    assert!(!serving.knows_enough(), "the uplink would be taken");
    let none = BTreeSet::new();
    let heard = serving.hear(News::Ties { addressed: none.clone(), default_routes: none });
    assert!(serving.knows_enough());
    assert_eq!(heard, Change::Something, "a node without addresses is served too");
}

use super::*;
use crate::devices;
use crate::inventory::tests::link;
use crate::kubelet::Ledger;
use crate::link::Kind;
use crate::metrics::Metrics;
use crate::selection::tests::pool;
use macvtap::paths::Paths;
use serde_json::json;
use std::collections::BTreeSet;

fn serving() -> Serving {
    let shared = Shared {
        paths: Paths::new("/dev/null/state", "/dev/null/run"),
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

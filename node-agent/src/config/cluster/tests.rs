mod silence;

use super::*;
use kube::core::DeserializeGuard;
use macvtap_crds::v1alpha1::MacvtapNodeState;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use serde_json::json;
use tokio::net::TcpListener;

fn spec(hash: &str) -> MacvtapNodeStateSpec {
    MacvtapNodeStateSpec { config_hash: hash.into(), pools: Some(Vec::new()), config: None }
}

#[tokio::test]
async fn the_last_configuration_is_found_again_and_a_damaged_one_is_none() {
    let dir = tempfile::tempdir().unwrap();
    // On a node where the agent never was.
    let cluster = Cluster::new("n1".into(), &dir.path().join("state"));
    assert_eq!(cluster.load(), None);
    cluster.save(&spec("h1")).await;
    assert_eq!(cluster.load(), Some(spec("h1")));
    std::fs::write(&cluster.saved, "{").unwrap();
    assert_eq!(cluster.load(), None);
}

#[tokio::test]
async fn when_it_is_ended_nobody_is_left_who_writes_to_the_api_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (status_sender, status) = watch::channel(Some(MacvtapNodeStateStatus::default()));
    let (lost_sender, lost) = watch::channel(Lost::new());
    let (pools, _configurations) = mpsc::channel(1);
    let cluster = Cluster::new("n1".into(), dir.path());
    let agent = tokio::spawn(cluster.follow_through(client, LastServed::default(), pools, status, lost));
    // One of them asks; none is answered.
    let _connection = listener.accept().await.unwrap();
    agent.abort();
    assert!(agent.await.unwrap_err().is_cancelled());
    assert_eq!((status_sender.receiver_count(), lost_sender.receiver_count()), (0, 0));
}

#[test]
fn what_is_served_already_is_not_served_again_and_a_state_that_is_gone_changes_nothing() {
    let state = |hash| DeserializeGuard(Ok(MacvtapNodeState::new("n1", spec(hash))));
    let mut current = LastServed::default();
    assert_eq!(current.next(Some(state("h1"))).unwrap().hash.as_deref(), Some("h1"));
    assert!(current.next(Some(state("h1"))).is_none());
    assert!(current.next(Some(state("h2"))).is_some());
    assert!(current.next(None).is_none(), "frozen until the operator writes another state");
    assert_eq!(current.spec, Some(spec("h2")));
    assert_eq!(current.next(Some(state("h3"))).unwrap().hash.as_deref(), Some("h3"));
    let nothing = LastServed::default().next(None).unwrap();
    assert_eq!((nothing.pools.len(), nothing.hash), (0, None), "a node without state offers nothing");
}

#[test]
fn a_state_that_can_be_read_again_ends_the_trouble_also_when_it_says_the_same() {
    let sound = || DeserializeGuard(Ok(MacvtapNodeState::new("n1", spec("h1"))));
    let strange =
        || serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": {"pools": 7}})).unwrap();
    let mut served = LastServed::default();
    served.next(Some(sound()));
    let kept = served.next(Some(strange())).unwrap();
    assert_eq!((kept.hash.as_deref(), kept.problem.is_some()), (Some("h1"), true));
    assert!(served.next(Some(strange())).is_none(), "it is said once");
    let healed = served.next(Some(sound())).unwrap();
    assert_eq!((healed.hash.as_deref(), healed.problem), (Some("h1"), None));
}

#[tokio::test]
async fn a_pool_that_cannot_be_served_keeps_its_former_settings_also_over_a_restart() {
    let state = |hash, pattern, phase| {
        let pool = json!({
            "name": "dp", "uid": "u", "generation": 2, "phase": phase, "links": [{"names": [pattern]}],
        });
        let spec = json!({"configHash": hash, "pools": [pool]});
        DeserializeGuard(Ok(MacvtapNodeState::new("n1", serde_json::from_value(spec).unwrap())))
    };
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new("n1".into(), dir.path());
    let (pools, mut configurations) = mpsc::channel(1);
    let mut served = LastServed::default();
    for (hash, pattern) in [("h1", "dp*"), ("h2", "dp[0")] {
        assert!(
            cluster
                .take(Found::State(Some(Box::new(state(hash, pattern, "Active")))), &mut served, &pools)
                .await
        );
        let next = configurations.recv().await.unwrap();
        let kept: Vec<_> = next.pools.iter().map(|pool| pool.settings.links[0].names.clone()).collect();
        assert_eq!(kept, [Some(vec!["dp*".to_owned()])], "{hash}");
        assert_eq!((next.hash.as_deref(), next.refused.len()), (Some(hash), usize::from(hash == "h2")));
    }
    let mut restarted = LastServed { spec: cluster.load(), ..LastServed::default() };
    assert_eq!(restarted.configuration().pools.len(), 1);
    let deleted = restarted.next(Some(state("h3", "dp[0", "Draining"))).unwrap();
    assert!(deleted.pools[0].draining);
}

#[test]
fn a_pool_that_must_stay_unchanged_is_served_as_it_was_and_not_at_all_where_it_never_was() {
    let pool = |name: &str, phase: &str, link: &str| json!({"name": name, "uid": name, "generation": 2, "phase": phase, "links": [{"names": [link]}]});
    let state = |hash: &str, pools: &[serde_json::Value]| {
        let spec = json!({"configHash": hash, "pools": pools});
        DeserializeGuard(Ok(MacvtapNodeState::new("n1", serde_json::from_value(spec).unwrap())))
    };
    let mut served = LastServed::default();
    served.next(Some(state("h1", &[pool("a", "Active", "dp0"), pool("b", "Draining", "dp0")])));
    let unchanged = ["a", "b", "never"].map(|name| pool(name, "Unchanged", "other"));
    let next = served.next(Some(state("h2", &unchanged))).unwrap();
    let pools: Vec<_> =
        next.in_force.iter().map(|p| (p.name.as_str(), p.phase, p.settings.links[0].names.clone())).collect();
    let link = Some(vec!["dp0".to_owned()]);
    assert_eq!(pools, [("a", PoolPhase::Active, link.clone()), ("b", PoolPhase::Draining, link)]);
    assert_eq!((next.hash.as_deref(), next.refused.len()), (Some("h2"), 0));
}

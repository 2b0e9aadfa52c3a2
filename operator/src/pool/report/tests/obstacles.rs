//! Nodes that cannot have a pool.

use super::*;

#[test]
fn a_node_that_cannot_have_the_pool_holds_up_no_rollout_and_says_why() {
    let after =
        pool("dp", json!({"nodeSelector": {}, "rollout": {"type": "Staged", "staged": {"batch": 1}}}));
    let mut others: Vec<_> = (0..64).map(|i| pool(&format!("p{i:02}"), json!({"priority": 5}))).collect();
    let look = |others: &[MacvtapResourcePool]| {
        let (mut full, empty) = (told("n1", &after, 0), told("n2", &pool("gone", json!({})), 0));
        let entries: Vec<_> = others.iter().map(|pool| Arc::new(crate::entry::entry_of(pool))).collect();
        full.state = Some(state("n1", spec(&entries), NOW));
        let all: Vec<_> = others.iter().chain([&after]).collect();
        let catalog = Catalog::new(all.iter().copied());
        let views = [full.view(), empty.view()];
        report(&after, &views, &Ok(()), &NetworkReport::default(), &catalog, &Grants::default())
    };
    let found = look(&others);
    assert_eq!(found.rollout.next, ["n2"]);
    assert_eq!(found.status.samples[0].reason, "TooManyPools");
    says(&found.status, Degraded, true, PoolReason::NodesDegraded);
    others[9].spec.settings.priority = 0;
    others[9].metadata.creation_timestamp = Some(crate::testing::at(5));
    let found = look(&others);
    assert_eq!(found.rollout.next, ["n1"], "the last one of the others makes room");
    assert_eq!(found.status.samples[0].reason, "Waiting");

    let heir = pool("heir", json!({"resourceName": "dp", "nodeSelector": {}, "rollout": {"type": "Staged"}}));
    let report = status_with(
        &heir,
        &[told("n1", &after, 0), told("n2", &pool("gone", json!({})), 0)],
        &Ok(()),
        &NetworkReport::default(),
    );
    assert_eq!(report.rollout.next, ["n2"]);
    assert!(report.status.samples[0].message.contains("earlier pool"), "{:?}", report.status.samples);
}

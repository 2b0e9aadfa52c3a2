//! What is read of node states.

use super::*;
use crate::states::Interner;
use serde_json::Value;
use serde_json::json;

fn read(json: Value) -> KnownState {
    KnownState::read(&serde_json::from_value(json).unwrap(), &mut Interner::default())
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_kept() {
    let state = read(json!({
        "metadata": {"name": "n1"},
        "spec": {"configHash": "h", "pools": [{"name": "odd", "phase": 7}, "nonsense"]},
        "status": {
            "observedHash": "h",
            "pools": [{"name": "strange", "allocated": "many"}, {"name": "dp", "allocated": 2, "fromTheFuture": {}}],
        },
    }));
    assert!(state.applied() && state.pools.is_empty());
    assert_eq!(state.pool("dp").map(|pool| pool.allocated), Some(2));
    let text = state.unreadable.unwrap();
    for place in ["spec.pools[odd]", "spec.pools[without name]", "status.pools[strange]"] {
        assert!(text.contains(place), "{text}");
    }
}

#[test]
fn a_new_spec_mends_what_could_not_be_read_of_the_spec_only() {
    let written = |status: Value| {
        let spec = json!({"configHash": "h", "pools": ["nonsense"]});
        let mut state = read(json!({"metadata": {"name": "n1"}, "spec": spec, "status": status}));
        state.write(&Spec::default());
        state.unreadable.is_some()
    };
    assert!(!written(Value::Null));
    assert!(written(json!({"observedHash": "h", "pools": [{"name": "strange", "allocated": "many"}]})));
}

#[test]
fn an_object_of_nothing_but_wrong_types_is_a_state_that_says_nothing() {
    let state = read(json!({"metadata": {"name": "n1"}, "spec": [1], "status": "good"}));
    assert_eq!((state.config_hash.as_str(), state.answered()), ("", false));
}

#[test]
fn a_node_offers_devices_of_a_pool_until_it_was_told_to_drain_it() {
    let entry = |phase: &str| json!({"name": "dp", "uid": "u", "generation": 1, "phase": phase, "links": []});
    let with = |phase: &str| read(json!({"metadata": {"name": "n1"}, "spec": {"pools": [entry(phase)]}}));
    assert!(with("Active").offers_any(&HashSet::from(["u", "v"])));
    assert!(!with("Draining").offers_any(&HashSet::from(["u"])));
    assert!(!with("Active").offers_any(&HashSet::from(["v"])));
}

#[test]
fn only_agents_of_the_first_release_and_unknown_ones_need_the_full_form() {
    let reads = |status: Value| read(json!({"metadata": {"name": "n1"}, "status": status})).reads();
    assert_eq!(reads(json!({"observedHash": "h", "agentVersion": "0.1.0"})), Form::Full);
    assert_eq!(reads(json!({"observedHash": "h", "agentVersion": "0.2.0"})), Form::Shared);
    assert_eq!(reads(json!({"observedHash": "h", "agentVersion": "1.0.0-rc.1"})), Form::Shared);
    assert_eq!(reads(json!({"observedHash": "h", "agentVersion": "test"})), Form::Full);
    assert_eq!(reads(json!({"observedGeneration": 3})), Form::Shared);
    assert_eq!(reads(Value::Null), Form::Full);
}

#[test]
fn a_brief_spec_is_not_as_it_should_be_for_an_agent_that_was_taken_back() {
    let entries = vec![Arc::new(crate::entry::entry_of(&crate::testing::pool("dp", json!({}))))];
    let with = |form: Form| {
        let pools: Vec<Value> = entries.iter().map(|entry| entry.json(form).unwrap()).collect();
        let hash = crate::entry::config_hash(&entries);
        read(json!({"metadata": {"name": "n1"}, "spec": {"configHash": hash, "pools": pools}}))
    };
    let spec = |form: Form| Spec {
        owner: None,
        config_hash: crate::entry::config_hash(&entries),
        pools: entries.clone(),
        form,
        config: None,
    };
    assert!(with(Form::Full).is_as(&spec(Form::Full)) && with(Form::Full).is_as(&spec(Form::Brief)));
    assert!(with(Form::Brief).is_as(&spec(Form::Brief)) && !with(Form::Brief).is_as(&spec(Form::Full)));
    let changed = Spec { pools: Vec::new(), ..spec(Form::Full) };
    assert!(!with(Form::Full).is_as(&changed), "somebody else has changed the pools and left the hash");
}

#[test]
fn an_owner_counts_only_as_we_write_it() {
    let owned = |block: Value| {
        let reference = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "blockOwnerDeletion": block});
        read(json!({"metadata": {"name": "n1", "ownerReferences": [reference]}})).owner
    };
    assert_eq!(owned(Value::Null).as_deref(), Some("u"));
    assert_eq!(owned(true.into()), None);
}

//! What becomes of macvtap-cni's configuration.

use super::*;
use Overlap::{Exclusive, Shared};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::settings::{Mode, Overlap, ResourcePer, TapOnly};

fn group(name: &str, nodes: Option<(&str, &str)>, entries: &Value) -> Group {
    Group {
        name: name.into(),
        nodes: nodes.map(|(key, value)| (key.into(), value.into())),
        entries: serde_json::from_value(entries.clone()).unwrap(),
    }
}

fn pools(plan: &Migration) -> Vec<MacvtapResourcePool> {
    plan.pools.iter().map(|pool| serde_json::from_value(pool.object.clone()).unwrap()).collect()
}

fn one(entries: &Value) -> (Migration, Vec<MacvtapResourcePool>) {
    let plan = plan(&[group("config", None, entries)]);
    let pools = pools(&plan);
    (plan, pools)
}

#[test]
fn an_entry_becomes_a_pool_of_the_same_resource() {
    let (plan, pools) =
        one(&json!([{"name": "dataplane", "lowerDevice": "eth0", "mode": "vepa", "capacity": 50}]));
    assert_eq!(plan.problems, [""; 0]);
    let pool = &pools[0];
    assert_eq!((pool.resource_name(), pool.metadata.name.as_deref()), (Some("dataplane"), Some("dataplane")));
    assert_eq!(pool.spec.settings.links[0].names.as_deref(), Some(&["eth0".to_owned()][..]));
    assert_eq!(pool.spec.settings.macvtap.as_ref().unwrap().mode, Mode::Vepa);
    assert_eq!((pool.spec.settings.per_link(), pool.spec.settings.overlap), (50, Exclusive));
    assert_eq!(pool.spec.settings.tap_only, TapOnly::Allowed);
    assert_eq!(pool.spec.settings.resource_prefix, GROUP);
}

#[test]
fn what_is_left_out_means_what_it_did() {
    let (plan, pools) = one(&json!([{"Name": "a", "master": "eth0", "mode": "", "capacity": 0, "spare": 1}]));
    assert_eq!((pools[0].spec.settings.per_link(), plan.problems.len()), (100, 0));
    let notes = plan.pools[0].notes.join("\n");
    assert!(notes.contains("older word") && notes.contains("\"spare\""), "{notes}");
}

#[test]
fn resources_of_one_lower_device_share_it() {
    let entries = json!([
        {"name": "a", "lowerDevice": "eth0"}, {"name": "b", "lowerDevice": "eth0"}, {"name": "c", "lowerDevice": "eth1"},
        {"name": "d", "lowerDevice": "eth2", "mode": "passthru", "capacity": 9}, {"name": "e", "lowerDevice": "eth2"},
    ]);
    let (plan, pools) = one(&entries);
    let overlaps: Vec<_> = pools.iter().map(|pool| pool.spec.settings.overlap).collect();
    assert_eq!(overlaps, [Shared, Shared, Exclusive, Exclusive, Shared]);
    assert_eq!(pools[3].spec.settings.per_link(), 1);
    assert!(plan.pools[3].notes.join(" ").contains("only one can have it"));
}

#[test]
fn an_empty_configuration_is_a_resource_for_each_link() {
    let (_, pools) = one(&json!([]));
    assert_eq!(pools[0].spec.settings.resource_per, ResourcePer::Link);
    assert_eq!((pools[0].metadata.name.as_deref(), pools[0].resource_name()), (Some("every-link"), None));
}

#[test]
fn names_that_no_object_can_have_are_kept_as_resource_names() {
    let entries =
        ["Data_Plane", "data-plane", "a._b", "x"].map(|name| json!({"name": name, "lowerDevice": name}));
    let (_, pools) = one(&json!(entries));
    let names: Vec<_> = pools
        .iter()
        .map(|pool| (pool.metadata.name.clone().unwrap(), pool.resource_name().unwrap().to_owned()))
        .collect();
    let expected =
        [("data-plane", "Data_Plane"), ("data-plane-2", "data-plane"), ("a.b", "a._b"), ("x", "x")];
    assert_eq!(names, expected.map(|(pool, resource)| (pool.to_owned(), resource.to_owned())));
}

#[test]
fn nodes_with_configurations_of_their_own_have_one_pool_for_each_resource() {
    let groups = [
        group("west", Some(("zone", "w")), &json!([{"name": "dp", "lowerDevice": "eth0"}])),
        group(
            "east",
            Some(("zone", "e")),
            &json!([{"name": "dp", "lowerDevice": "ens1"}, {"name": "own", "lowerDevice": "ens2"}]),
        ),
    ];
    let plan = plan(&groups);
    let pools = pools(&plan);
    assert_eq!(pools.len(), 2);
    assert_eq!(plan.pools[0].object["spec"]["links"][0]["names"], json!(["ens1", "eth0"]));
    let expressions = &plan.pools[0].object["spec"]["nodeSelector"]["matchExpressions"];
    assert_eq!(expressions, &json!([{"key": "zone", "operator": "In", "values": ["e", "w"]}]));
    assert_eq!(plan.pools[1].object["spec"]["nodeSelector"], json!({"matchLabels": {"zone": "e"}}));
    assert!(plan.pools[0].notes.join(" ").contains("different lower devices"));
}

#[test]
fn what_cannot_be_had_is_named_with_its_place() {
    let first = json!([
        {"name": "a/b", "lowerDevice": "eth0"}, {"name": "a"}, {"lowerDevice": "eth0"}, {"name": "a", "lowerDevice": 7},
        {"name": "a", "lowerDevice": "eth 0"}, {"name": "a", "lowerDevice": "x", "mode": "source"},
        {"name": "a", "lowerDevice": "x", "capacity": 5000}, {"name": "a", "lowerDevice": "x", "master": "y"},
        {"name": "good", "lowerDevice": "x"}, {"name": "good", "lowerDevice": "y"},
    ]);
    let second = json!([{"name": "good", "lowerDevice": "x", "mode": "private"}]);
    let plan = plan(&[group("one", None, &first), group("two", None, &second)]);
    assert_eq!((plan.pools.len(), plan.problems.len()), (1, 10), "{:#?}", plan.problems);
    let expected = [
        "a/b",
        "no lowerDevice",
        "no name",
        "7",
        "eth 0",
        "source",
        "5000",
        "keep one",
        "twice",
        "another name",
    ];
    for (problem, words) in plan.problems.iter().zip(expected) {
        assert!(problem.contains(words) && problem.starts_with("entry "), "{problem}");
    }
    assert!(plan.notes.join(" ").contains("--nodes"));
}

#[test]
fn a_name_with_pattern_characters_means_itself() {
    assert_eq!(escape("a*[b]?"), "a[*][[]b[]][?]");
}

#[test]
fn nothing_in_a_configuration_ends_a_comment() {
    let (plan, _) =
        one(&json!([{"name": "a", "lowerDevice": "x", "evil\nkind: Pod": 1}, {"name": "b\nkind: Pod"}]));
    let text = crate::migrate::print(&plan).unwrap();
    assert!(!text.lines().any(|line| line.starts_with("kind: Pod")), "{text}");
}

use super::*;
use crate::error_chain;
use crate::links::inventory::Inventory;
use crate::links::inventory::tests::link;
use crate::links::link::Kind;
use crate::pools::pool::Naming;
use crate::pools::selection::{Holdings, select};

fn error(text: &str) -> String {
    error_chain(&Standalone::parse(text).expect_err(text))
}

fn pool(text: &str) -> Pool {
    let mut standalone = Standalone::parse(text).unwrap();
    assert_eq!(standalone.pools.len(), 1);
    standalone.pools.remove(0)
}

#[test]
fn the_documented_example_is_read_as_it_always_was() {
    let text = r#"[ { "name" : "dataplane", "lowerDevice" : "eth0", "mode": "bridge", "capacity" : 50 } ]"#;
    let pool = pool(text);
    assert_eq!(pool.naming, Naming::Fixed("dataplane".parse().unwrap()));
    assert_eq!((pool.mode(), pool.settings.per_link()), (Mode::Bridge, 50));
    assert_eq!(pool.settings.resource_prefix, "macvtap.network.kubevirt.io");
    assert_eq!(pool.settings.tap_only, TapOnly::Allowed);
    assert!(pool.shares());
}

#[test]
fn mode_and_capacity_have_the_usual_defaults() {
    for text in [
        r#"[{"name":"a","lowerDevice":"b"}]"#,
        r#"[{"name":"a","lowerDevice":"b","mode":""}]"#,
        r#"[{"name":"a","lowerDevice":"b","mode":null,"capacity":null,"type":null,"master":null}]"#,
    ] {
        assert_eq!((pool(text).mode(), pool(text).settings.per_link()), (Mode::Bridge, 100));
    }
    assert_eq!(pool(r#"[{"name":"a","lowerDevice":"b","mode":"passthru"}]"#).settings.per_link(), 1);
}

#[test]
fn a_host_device_is_one_whole_nic_that_nobody_shares() {
    for more in ["", r#","capacity":1"#] {
        let text = format!(r#"[{{"name":"a","lowerDevice":"eth1","type":"HostDevice"{more}}}]"#);
        let pool = pool(&text);
        assert_eq!(pool.settings.device_type, DeviceType::HostDevice);
        assert_eq!((pool.settings.per_link(), pool.shares()), (1, false));
        assert_eq!((pool.settings.tap_only, &pool.settings.macvtap), (TapOnly::Forbidden, &None));
        assert_eq!(pool.settings.resource_prefix, "macvtap.network.kubevirt.io");
    }
    assert_eq!(pool(r#"[{"name":"a","lowerDevice":"b","type":"Macvtap"}]"#).settings.per_link(), 100);
}

#[test]
fn the_older_word_for_the_lower_device_works_with_a_warning() {
    let standalone = Standalone::parse(r#"[{"name":"eth0","master":"eth0"}]"#).unwrap();
    assert_eq!(standalone.warnings.len(), 1);
    assert!(standalone.warnings[0].contains("entry 1 (\"eth0\"): master"), "{:?}", standalone.warnings);
    assert!(
        Standalone::parse(r#"[{"name":"a","master":"b","lowerDevice":"b"}]"#).unwrap().warnings.is_empty()
    );
}

#[test]
fn a_lower_device_is_exactly_that_one_of_whatever_kind() {
    let pool = pool(r#"[{"name":"a","lowerDevice":"v[0]*"}]"#);
    assert!(pool.selects(&link(1, "v[0]*", Kind::Veth)));
    assert!(!pool.selects(&link(1, "v0x", Kind::Veth)));
}

#[test]
fn an_empty_list_means_a_resource_for_every_nic_and_bond() {
    for text in ["[]", " [ ]\n", "null"] {
        let standalone = Standalone::parse(text).unwrap();
        let mut inventory = Inventory::default();
        let _ = inventory.reset([
            link(1, "eth0", Kind::Physical),
            link(2, "bond0", Kind::Bond),
            link(3, "veth1", Kind::Veth),
            link(4, "br0", Kind::Bridge),
        ]);
        let selection = select(&standalone.pools, &inventory, &Holdings::new());
        let names: Vec<_> = selection.resources.keys().map(ResourceName::as_str).collect();
        assert_eq!(names, ["bond0", "eth0"]);
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_a_remedy() {
    for (text, parts) in [
        ("", &["is empty", "[]"][..]),
        ("{}", &["not a JSON array", "expected a sequence"]),
        ("[1]", &["not a JSON array of objects", "object with the keys"]),
        (r#"[{"name":"a","lowerDevice":"b"},]"#, &["trailing comma", "line 1 column 33"]),
        ("[]x", &["trailing characters"]),
        (r#"[{"name":"a"}]"#, &["entry 1 (\"a\")", "\"lowerDevice\" is missing", "eth0"]),
        (
            r#"[{"name":"a","lowerDevice":"b","type":"hostdevice"}]"#,
            &["entry 1 (\"a\")", "type is \"hostdevice\"", "\"HostDevice\""],
        ),
        (r#"[{"name":"a","lowerDevice":"b","type":7}]"#, &["type is 7", "double quotes"]),
        (r#"[{"name":"a","lowerDevice":"b","Type":"Macvtap"}]"#, &["\"Type\"", "is \"type\" meant?"]),
        (
            r#"[{"name":"a","lowerDevice":"b","type":"HostDevice","mode":"bridge"}]"#,
            &["has no mode", "leave mode out"],
        ),
        (
            r#"[{"name":"a","lowerDevice":"b","type":"HostDevice","capacity":0}]"#,
            &["capacity is 0", "write 1"],
        ),
        (
            r#"[{"name":"a","lowerDevice":"b","type":"HostDevice","capacity":"1"}]"#,
            &["capacity is \"1\"", "write 1"],
        ),
        (r#"[{"lowerDevice":"b"}]"#, &["entry 1:", "\"name\" is missing"]),
        (r#"[{"name":"a","lower-device":"b"}]"#, &["unknown key \"lower-device\"", "\"lowerDevice\" meant"]),
        (r#"[{"name":"a","lowerDevice":"b","vlan":5}]"#, &["unknown key \"vlan\"", "name, lowerDevice"]),
        (r#"[{"name":"","lowerDevice":"b"}]"#, &["entry 1 (\"\")", "name", "1 to 63"]),
        (r#"[{"name":"a/b","lowerDevice":"b"}]"#, &["\"a/b\"", "1 to 63"]),
        (r#"[{"name":"a","lowerDevice":""}]"#, &["lowerDevice \"\"", "ip link"]),
        (r#"[{"name":"a","lowerDevice":"../x"}]"#, &["lowerDevice \"../x\""]),
        (r#"[{"name":"a","lowerDevice":"b","mode":"brigde"}]"#, &["mode \"brigde\"", "bridge, vepa"]),
        (r#"[{"name":"a","lowerDevice":"b","mode":7}]"#, &["mode is 7", "double quotes"]),
        (r#"[{"name":"a","lowerDevice":"b","capacity":-1}]"#, &["capacity is -1", "1 to 4096"]),
        (r#"[{"name":"a","lowerDevice":"b","capacity":"50"}]"#, &["capacity is \"50\""]),
        (r#"[{"name":"a","lowerDevice":"b","capacity":1.5}]"#, &["capacity is 1.5"]),
        (r#"[{"name":"a","lowerDevice":"b","capacity":99999}]"#, &["capacity is 99999"]),
        (
            r#"[{"name":"a","lowerDevice":"b","mode":"passthru","capacity":5}]"#,
            &["passthru", "capacity is 5"],
        ),
        (
            r#"[{"name":"a","lowerDevice":"b"},{"name":"a","lowerDevice":"c"}]"#,
            &["entry 2 (\"a\")", "entry 1 too"],
        ),
        (r#"[{"name":"a","name":"b","lowerDevice":"b"}]"#, &["key \"name\" occurs twice"]),
        (r#"[{"name":"a","master":"x","lowerDevice":"b"}]"#, &["\"b\"", "\"x\"", "keep lowerDevice"]),
    ] {
        let error = error(text);
        for part in parts {
            assert!(error.contains(part), "{text}: {error:?} lacks {part:?}");
        }
    }
    let long = format!(r#"[{{"name":"{}","lowerDevice":"b"}}]"#, "a".repeat(64));
    assert!(error(&long).contains("1 to 63"));
    assert!(error(&" 7".repeat(SIZE_MAX)).contains("bytes"));
}

#[test]
fn every_entry_is_a_resource_even_on_one_link() {
    let text = r#"[{"name":"a","lowerDevice":"x"},{"name":"b","lowerDevice":"x","mode":"private"}]"#;
    let pools = Standalone::parse(text).unwrap().pools;
    let mut inventory = Inventory::default();
    let _ = inventory.reset([link(1, "x", Kind::Veth)]);
    let selection = select(&pools, &inventory, &Holdings::new());
    assert_eq!(selection.links[&1].pools, [0, 1]);
}

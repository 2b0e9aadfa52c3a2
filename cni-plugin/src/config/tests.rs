use super::*;
use proptest::prelude::*;
use serde_json::json;

fn document(more: Value) -> Document {
    let mut json = json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap"});
    let (Some(all), Value::Object(more)) = (json.as_object_mut(), more) else { panic!("no object") };
    all.extend(more);
    Document::parse(json.to_string().as_bytes()).unwrap()
}

fn network(more: Value) -> Result<Network, CniError> {
    document(more).network(&Args::default(), &Settings::default())
}

#[test]
fn each_wrong_value_is_code_7_with_key_and_value() {
    for (key, value) in [
        ("deviceID", json!(7)),
        ("mac", json!("zz")),
        ("mac", json!("01:00:5e:00:00:01")),
        ("mtu", json!("1500")),
        ("mtu", json!(67)),
        ("mtu", json!(65_536)),
        ("mtu", json!(-1)),
        ("mtu", json!(1500.5)),
        ("mode", json!("source")),
        ("mode", json!(4)),
        ("promiscMode", json!("yes")),
        ("owner", json!(-1)),
        ("owner", json!(4_294_967_295_u32)),
        ("group", json!("qemu")),
        ("announce", json!("never")),
        ("migration", json!("follow")),
        ("migration", json!(true)),
        ("dns", json!([])),
        ("ipam", json!("host-local")),
        ("ipam.type", json!({"type": "../../bin/sh"})),
        ("ipam.type", json!({"type": ".."})),
        ("ipam.type", json!({"type": ""})),
        ("ipam.type", json!({"subnet": "10.0.0.0/24"})),
        ("ipam.type", json!({"type": "macvtap"})),
        ("ipam.type", json!({"type": "multus-shim"})),
        ("logFile", json!("/etc/passwd")),
        ("log_file", json!("/etc/passwd")),
        ("LogLevel", json!("debug")),
    ] {
        let top = key.split('.').next().unwrap();
        let error = network(json!({top: value})).unwrap_err();
        assert_eq!(error.code, 7, "{key}: {value}");
        assert!(error.message.contains(key), "{}", error.message);
        assert!(error.message.contains("; it must be "), "{}", error.message);
    }
}

#[test]
fn unknown_keys_and_values_that_mean_nothing_are_tolerated() {
    let network = network(json!({
        "anything": {"at": "all"}, "mtu": 0, "ipam": {}, "mac": "", "deviceID": "", "mode": null,
        "runtimeConfig": {"ips": []}, "capabilities": {"mac": true}, "announce": "", "dad": "", "migration": "",
    }));
    let network = network.unwrap();
    assert_eq!((network.mtu, network.ipam, network.mac, network.device_id), (None, None, None, None));
    document(json!({"mode": ""})).refuse_for_nic().unwrap();
}

#[test]
fn the_first_address_by_precedence_wins_and_none_may_be_invalid() {
    let all = json!({
        "mac": "02:00:00:00:00:04",
        "args": {"cni": {"mac": "02:00:00:00:00:03"}},
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
    });
    let args = Args::parse("MAC=02:00:00:00:00:02").unwrap();
    let settings = Settings::default();
    let mac = |json: &Value, args: &Args| {
        document(json.clone()).network(args, &settings).map(|n| n.mac.map(|m| m.to_string()))
    };
    let last = |n: u8| Ok(Some(format!("02:00:00:00:00:0{n}")));
    assert_eq!(mac(&all, &args), last(1));
    let mut less = all.clone();
    less["runtimeConfig"] = json!({});
    assert_eq!(mac(&less, &args), last(2));
    assert_eq!(mac(&less, &Args::default()), last(3));
    less["args"] = json!({});
    assert_eq!(mac(&less, &Args::default()), last(4));
    assert_eq!(mac(&all, &Args::parse("MAC=no").unwrap()).unwrap_err().code, 4);
    less["runtimeConfig"] = json!({"mac": "no"});
    assert_eq!(mac(&less, &args).unwrap_err().code, 7);
}

#[test]
fn a_device_is_named_once() {
    let id = |json| document(json).device_id();
    assert_eq!(id(json!({"runtimeConfig": {"deviceID": "aMvp0"}})).unwrap().as_deref(), Some("aMvp0"));
    assert_eq!(
        id(json!({"deviceID": "aMvp0", "runtimeConfig": {"deviceID": "aMvp0"}})).unwrap().as_deref(),
        Some("aMvp0")
    );
    assert_eq!(id(json!({"deviceID": "aMvp1", "runtimeConfig": {"deviceID": "aMvp0"}})).unwrap_err().code, 7);
}

#[test]
fn kube_ovn_is_given_only_what_it_handles() {
    let ipam = |provider: &str, socket: &str| {
        let ipam = json!({"type": "kube-ovn", "provider": provider, "server_socket": socket});
        document(json!({"ipam": ipam})).ipam(&Settings::default())
    };
    let socket = "/run/openvswitch/kube-ovn-daemon.sock";
    assert!(ipam("p4p1.default", socket).is_ok());
    for (provider, socket) in [
        ("p4p1", socket),
        ("p4p1.", socket),
        ("p4p1.myovn", socket),
        (".default", socket),
        ("p4p1.default.cluster", socket),
        ("p4p1.default", ""),
        ("p4p1.default", "/run/openvswitch"),
        ("p4p1.default", "/run/openvswitch/../docker.sock"),
        ("p4p1.default", "/run/openvswitchX/a.sock"),
        ("p4p1.default", "run/openvswitch/a.sock"),
    ] {
        assert_eq!(ipam(provider, socket).unwrap_err().code, 7, "{provider} {socket}");
    }
}

#[test]
fn an_ipam_plugin_never_learns_the_device() {
    let json = json!({
        "deviceID": "aMvp0", "runtimeConfig": {"deviceID": "aMvp0", "ips": ["10.0.0.2/24"]}, "ipam": {"type": "static"},
    });
    let sent = document(json).for_ipam(Version::V1_0_0);
    assert!(!sent.to_string().contains("aMvp0"));
    assert_eq!(sent["runtimeConfig"]["ips"], json!(["10.0.0.2/24"]));
    assert_eq!(sent["cniVersion"], "1.0.0");
}

#[test]
fn an_older_ipam_plugin_gets_the_earlier_result_in_its_version() {
    let previous = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "net1", "mtu": 1500, "sandbox": "/run/netns/x"}],
        "ips": [{"address": "10.0.0.2/24", "interface": 0}],
    });
    let sent = document(json!({"cniVersion": "1.1.0", "prevResult": previous})).for_ipam(Version::V1_0_0);
    assert_eq!(sent["prevResult"]["cniVersion"], "1.0.0");
    assert_eq!(sent["prevResult"]["interfaces"], json!([{"name": "net1", "sandbox": "/run/netns/x"}]));
    assert_eq!(sent["prevResult"]["ips"], previous["ips"]);
}

#[test]
fn addresses_without_an_ipam_plugin_are_not_lost_silently() {
    let error = network(json!({"runtimeConfig": {"ips": ["10.0.0.2/24"]}})).unwrap_err();
    assert_eq!(error.code, 7);
    assert!(error.message.contains("runtimeConfig.ips"));
}

#[test]
fn what_is_no_configuration_has_the_specifications_codes() {
    let code = |text: &str| Document::parse(text.as_bytes()).unwrap_err().code;
    assert_eq!(code(""), 6);
    assert_eq!(code("[]"), 6);
    assert_eq!(code("{"), 6);
    assert_eq!(code("{}"), 1);
    assert_eq!(code(r#"{"cniVersion": "9.0.0", "name": "a"}"#), 1);
    assert_eq!(code(r#"{"cniVersion": "1.0.0"}"#), 7);
    assert_eq!(code(r#"{"cniVersion": "1.0.0", "name": "a b"}"#), 7);
    assert_eq!(code(r#"{"cniVersion": 1, "name": "a"}"#), 7);
    let named = |length| format!(r#"{{"cniVersion": "1.0.0", "name": "{}"}}"#, "a".repeat(length));
    assert_eq!(code(&named(256)), 7);
    assert!(Document::parse(named(255).as_bytes()).is_ok());
}

#[test]
fn what_a_del_can_use_of_a_configuration_it_uses() {
    let parse = |text: &str| Document::parse_for_del(text.as_bytes());
    let newer = parse(r#"{"cniVersion": "9.0.0", "name": "a", "deviceID": "aMvp0", "ipam": {"type": "x"}}"#);
    assert_eq!((newer.version, newer.name.as_str()), (Version::NEWEST, "a"));
    assert!(newer.has_ipam() && newer.device_id().unwrap().is_some());
    // An IPAM plugin would take the name for a directory.
    let nameless = parse(r#"{"cniVersion": "1.0.0", "name": "../a", "ipam": {"type": "x"}}"#);
    assert!(!nameless.has_ipam());
    assert_eq!(parse("{").name, "");
}

proptest! {
    #[test]
    fn no_input_makes_the_reader_panic(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Document::parse(&noise);
    }

    #[test]
    fn no_value_makes_the_judge_panic(key in "deviceID|mac|mtu|mode|promiscMode|owner|group|announce|ipam|dns|prevResult|args|runtimeConfig",
                                      text in "\\PC{0,20}|\\{\"[a-z]{0,5}\":[0-9]{1,5}\\}|\\[[0-9]?\\]|-?[0-9]{0,25}") {
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let _ = network(json!({key: value}));
    }
}

//! The rules of our CRDs: what each lets pass and refuses.

use serde_json::{Value, json};

/// A rule: a spec it lets pass, one it does not, and words that must be in the refusal.
pub(crate) struct Rule {
    pub(crate) pass: Value,
    pub(crate) refuse: Value,
    pub(crate) words: &'static str,
}

fn rule(pass: Value, refuse: Value, words: &'static str) -> Rule {
    Rule { pass, refuse, words }
}

fn network(fields: &Value) -> Value {
    let mut network = json!({"name": "net", "namespaces": {"names": ["default"]}});
    for (key, value) in fields.as_object().into_iter().flatten() {
        network[key] = value.clone();
    }
    json!({"networks": [network]})
}

fn links(entry: &Value) -> Value {
    json!({"links": [entry]})
}

/// All rules.
pub(crate) fn rules() -> Vec<Rule> {
    let mut rules = resource_rules();
    rules.extend(link_rules());
    rules.extend(device_rules());
    rules.extend(network_rules());
    rules
}

fn resource_rules() -> Vec<Rule> {
    let prefix = |prefix: &str| json!({"resourcePrefix": prefix});
    let resource = |name: &str| json!({"resourceName": name});
    vec![
        rule(resource("Data_plane.1"), resource("data/plane"), "spec.resourceName"),
        rule(resource(&"a".repeat(63)), resource(&"a".repeat(64)), "may not be more than 63"),
        rule(resource("a"), resource(""), "spec.resourceName"),
        rule(resource("a-b"), resource("a-"), "spec.resourceName"),
        rule(prefix("example.com"), prefix("Example.com"), "spec.resourcePrefix"),
        rule(
            prefix("a.kubernetes.io.example"),
            prefix("kubernetes.io"),
            "kubernetes.io belongs to Kubernetes",
        ),
        rule(prefix("kubernetes.example"), prefix("x.kubernetes.io"), "kubernetes.io belongs to Kubernetes"),
        rule(prefix("request.example"), prefix("requests.example"), "reserved for quotas"),
        rule(json!({"priority": 1000}), json!({"priority": 1001}), "less than or equal to 1000"),
        rule(json!({"priority": 0}), json!({"priority": -1}), "spec.priority"),
        rule(json!({"overlap": "Shared"}), json!({"overlap": "shared"}), "supported values"),
        rule(json!({"resourcePer": "Link"}), json!({"resourcePer": "Node"}), "supported values"),
        rule(json!({"advertisement": "DryRun"}), json!({"advertisement": true}), "spec.advertisement"),
        rule(json!({"allocation": "Pack"}), json!({"allocation": "Random"}), "supported values"),
        rule(json!({"tapOnly": "Allowed"}), json!({"tapOnly": "Yes"}), "supported values"),
        rule(json!({"topology": "None"}), json!({"topology": "Numa"}), "supported values"),
        rule(
            json!({"resourcePer": "Link"}),
            json!({"resourcePer": "Link", "resourceName": "a"}),
            "leave resourceName out",
        ),
        rule(json!({"capacity": {"perLink": 4096}}), json!({"capacity": {"perLink": 0}}), "perLink"),
        rule(json!({"capacity": {"perNode": 1}}), json!({"capacity": {"perNode": 65536}}), "perNode"),
        rule(
            json!({"health": {"downDelaySeconds": 0}}),
            json!({"health": {"downDelaySeconds": 3601}}),
            "downDelaySeconds",
        ),
        rule(json!({"health": {"carrier": "Ignored"}}), json!({"health": {"carrier": "Yes"}}), "carrier"),
        rule(
            json!({"rollout": {"type": "Staged", "staged": {"batch": 5}}}),
            json!({"rollout": {"staged": {}}}),
            "staged needs type: Staged",
        ),
        rule(
            json!({"rollout": {"type": "Staged", "staged": {"batch": "100%"}}}),
            json!({"rollout": {"type": "Staged", "staged": {"batch": "101%"}}}),
            "batch",
        ),
        rule(
            json!({"rollout": {"type": "Staged", "staged": {"batch": 1}}}),
            json!({"rollout": {"type": "Staged", "staged": {"batch": 0}}}),
            "batch",
        ),
        rule(
            json!({"rollout": {"type": "Staged", "staged": {"batch": i32::MAX}}}),
            json!({"rollout": {"type": "Staged", "staged": {"batch": 1_u32 << 31}}}),
            "less than or equal to 2147483647",
        ),
        rule(
            json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["x"]}]}}),
            json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            "In and NotIn need values",
        ),
        rule(
            json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}),
            json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
            "supported values",
        ),
    ]
}

fn link_rules() -> Vec<Rule> {
    let many = |n: usize| (0..n).map(|i| format!("eth{i}")).collect::<Vec<_>>();
    vec![
        rule(json!({"links": [{"kinds": ["Physical", "Bond"]}]}), json!({"links": []}), "spec.links"),
        rule(links(&json!({"minSpeedMbps": 1})), links(&json!({})), "an empty entry would match every link"),
        rule(links(&json!({"kinds": ["Vlan"]})), links(&json!({"kinds": []})), "kinds"),
        rule(links(&json!({"kinds": ["Bond"]})), links(&json!({"kinds": ["bond"]})), "supported values"),
        rule(
            links(&json!({"kinds": ["Bond"]})),
            links(&json!({"kinds": ["Bond", "Bond"]})),
            "Duplicate value",
        ),
        rule(links(&json!({"names": ["ens*f0", "eth[0-9]"]})), links(&json!({"names": ["a/b"]})), "names"),
        rule(links(&json!({"names": many(64)})), links(&json!({"names": many(65)})), "at most 64 items"),
        rule(links(&json!({"names": ["a"]})), links(&json!({"names": [""]})), "names"),
        rule(
            links(&json!({"pciAddresses": ["0000:3b:00.0"]})),
            links(&json!({"pciAddresses": ["3b:00.0"]})),
            "pciAddresses",
        ),
        rule(links(&json!({"vendors": ["15b3"]})), links(&json!({"vendors": ["0x15b3"]})), "vendors"),
        rule(links(&json!({"drivers": ["mlx5_core"]})), links(&json!({"drivers": ["a b"]})), "drivers"),
        rule(
            links(&json!({"macAddresses": ["02:00:00:00:00:aA"]})),
            links(&json!({"macAddresses": ["02-00-00-00-00-01"]})),
            "macAddresses",
        ),
        rule(links(&json!({"numaNodes": [0, 1]})), links(&json!({"numaNodes": [-1]})), "numaNodes"),
        rule(links(&json!({"minSpeedMbps": 25000})), links(&json!({"minSpeedMbps": 0})), "minSpeedMbps"),
        rule(json!({"exclude": [{"names": ["eth0"]}]}), json!({"exclude": [{}]}), "an empty entry"),
        rule(json!({"exclude": [{"names": ["eth0"]}]}), json!({"exclude": []}), "spec.exclude"),
    ]
}

fn device_rules() -> Vec<Rule> {
    let macvtap = |settings: Value| json!({"macvtap": settings});
    let passthru = |fields: Value| {
        let mut spec = json!({"macvtap": {"mode": "Passthru"}});
        for (key, value) in fields.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        spec
    };
    vec![
        rule(macvtap(json!({"mode": "VEPA"})), macvtap(json!({"mode": "vepa"})), "supported values"),
        rule(macvtap(json!({"mode": "Private"})), macvtap(json!({"mode": "Source"})), "supported values"),
        rule(macvtap(json!({"mtu": 68})), macvtap(json!({"mtu": 67})), "mtu"),
        rule(macvtap(json!({"mtu": 65535})), macvtap(json!({"mtu": 65536})), "mtu"),
        rule(
            macvtap(json!({"owner": {"uid": 4_294_967_294_u32}})),
            macvtap(json!({"owner": {"uid": 4_294_967_295_u32}})),
            "uid",
        ),
        rule(
            passthru(json!({"capacity": {"perLink": 1}})),
            passthru(json!({"capacity": {"perLink": 5}})),
            "capacity.perLink must be 1 or absent",
        ),
        rule(
            passthru(json!({"capacity": {"perNode": 5}})),
            passthru(json!({"overlap": "Shared"})),
            "overlap cannot be Shared",
        ),
        rule(json!({"type": "HostDevice"}), json!({"type": "Hostdevice"}), "supported values"),
        rule(
            json!({"type": "HostDevice", "hostDevice": {}}),
            json!({"type": "HostDevice", "macvtap": {}}),
            "only the settings of the pool's own type",
        ),
        rule(macvtap(json!({})), json!({"hostDevice": {}}), "only the settings of the pool's own type"),
        rule(
            json!({"type": "HostDevice", "capacity": {"perLink": 1}}),
            json!({"type": "HostDevice", "capacity": {"perLink": 2}}),
            "capacity.perLink must be 1 or absent",
        ),
        rule(
            json!({"type": "HostDevice"}),
            json!({"type": "HostDevice", "overlap": "Shared"}),
            "overlap cannot be Shared",
        ),
        rule(
            json!({"type": "HostDevice"}),
            json!({"type": "HostDevice", "tapOnly": "Allowed"}),
            "a NIC has no tap",
        ),
    ]
}

fn network_rules() -> Vec<Rule> {
    let named = |per: &str, name: &str| {
        let mut spec = network(&json!({"name": name}));
        spec["resourcePer"] = per.into();
        spec
    };
    let places = |places: Value| network(&json!({"namespaces": places}));
    let ipam = |ipam: Value| network(&json!({"ipam": ipam}));
    let two = |a: &str, b: &str| {
        let default = json!({"names": ["default"]});
        json!({"networks": [{"name": a, "namespaces": default}, {"name": b, "namespaces": default}]})
    };
    let seventeen = (0..17).map(|i| json!({"name": format!("n{i}"), "namespaces": {"names": ["a"]}}));
    vec![
        rule(two("a", "b"), two("a", "a"), "Duplicate value"),
        rule(json!({"networks": []}), json!({"networks": seventeen.collect::<Vec<_>>()}), "at most 16 items"),
        rule(named("Pool", "net-1"), named("Pool", "net.1"), "networks[0].name"),
        rule(named("Link", "m-{link}"), named("Link", "m"), "contains {link} with resourcePer: Link"),
        rule(named("Pool", "m"), named("Pool", "m-{link}"), "contains {link} with resourcePer: Link"),
        rule(places(json!({"selector": {}})), places(json!({})), "no namespace is selected"),
        rule(places(json!({"names": ["a"]})), places(json!({"names": []})), "namespaces.names"),
        rule(places(json!({"names": ["a"]})), places(json!({"names": ["A"]})), "namespaces.names"),
        rule(
            network(&json!({"cniVersion": "1.1.0"})),
            network(&json!({"cniVersion": "0.2.0"})),
            "supported values",
        ),
        rule(network(&json!({"mtu": 1500})), network(&json!({"mtu": 1})), "mtu"),
        rule(
            network(&json!({"announce": "Never"})),
            network(&json!({"announce": "Always"})),
            "supported values",
        ),
        rule(network(&json!({"dad": "Never"})), network(&json!({"dad": "Always"})), "supported values"),
        rule(
            network(&json!({"migration": "Follow"})),
            network(&json!({"migration": "Follow", "ipam": {"kubeOVN": {}}})),
            "migration Follow excludes ipam",
        ),
        rule(
            network(&json!({"dns": {"nameservers": ["192.0.2.1", "2001:db8::1"]}})),
            network(&json!({"dns": {"nameservers": ["ns.example"]}})),
            "nameservers",
        ),
        rule(ipam(json!({"kubeOVN": {}})), ipam(json!({})), "exactly one of kubeOVN and raw"),
        rule(
            ipam(json!({"raw": {"type": "host-local", "ranges": [[{"subnet": "192.0.2.0/24"}]]}})),
            ipam(json!({"kubeOVN": {}, "raw": {"type": "static"}})),
            "exactly one of kubeOVN and raw",
        ),
        rule(ipam(json!({"raw": {"type": "static"}})), ipam(json!({"raw": {}})), "raw.type"),
        rule(ipam(json!({"raw": {"type": "static"}})), ipam(json!({"raw": {"type": "../evil"}})), "raw.type"),
        rule(
            ipam(json!({"kubeOVN": {"serverSocket": "/run/x.sock"}})),
            ipam(json!({"kubeOVN": {"serverSocket": "x.sock"}})),
            "serverSocket",
        ),
        rule(
            network(&json!({"metaPlugins": [{"type": "tuning", "sysctl": {"a": "b"}}]})),
            network(&json!({"metaPlugins": [{"sysctl": {}}]})),
            "metaPlugins[0].type",
        ),
    ]
}

//! What a real API server makes of our CRDs: which objects it takes and which it refuses with what words, the defaults
//! it fills in, and what `kubectl get` prints.

mod api;

use anyhow::{Context as _, Result};
use api::Api;
use serde_json::{Value, json};
use std::time::Duration;

/// A rule: a spec it lets pass, one it does not, and words that must be in the refusal.
struct Rule {
    pass: Value,
    refuse: Value,
    words: &'static str,
}

fn rule(pass: Value, refuse: Value, words: &'static str) -> Rule {
    Rule { pass, refuse, words }
}

/// A pool whose spec is a minimal one with these fields.
fn pool(name: &str, spec: &Value) -> Value {
    let mut full = json!({"links": [{"names": ["dp0"]}]});
    for (key, value) in spec.as_object().into_iter().flatten() {
        full[key] = value.clone();
    }
    json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapResourcePool",
        "metadata": {"name": name},
        "spec": full,
    })
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

#[test]
fn every_rule_lets_pass_what_it_should_and_refuses_what_it_should_not() -> Result<()> {
    let api = Api::shared()?;
    let mut problems = Vec::new();
    for (i, Rule { pass, refuse, words }) in rules().into_iter().enumerate() {
        let name = format!("rule-{i}");
        if let Err(refusal) = api.create_dry(&pool(&name, &pass)) {
            problems.push(format!("refused: {pass}\n    {refusal:#}"));
        }
        match api.create_dry(&pool(&name, &refuse)) {
            Ok(()) => problems.push(format!("taken: {refuse}")),
            Err(refusal) if !format!("{refusal:#}").contains(words) => {
                problems.push(format!("refused without the words {words:?}: {refuse}\n    {refusal:#}"));
            }
            Err(_) => {}
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn rules() -> Vec<Rule> {
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

#[test]
fn a_pools_name_must_fit_where_it_is_used() -> Result<()> {
    let api = Api::shared()?;
    api.create_dry(&pool(&"a".repeat(63), &json!({})))?;
    let refusal = api.create_dry(&pool(&"a".repeat(64), &json!({}))).expect_err("64 characters were taken");
    assert!(format!("{refusal:#}").contains("at most 63 characters"), "{refusal:#}");
    Ok(())
}

#[test]
fn what_names_a_resource_never_changes() -> Result<()> {
    let api = Api::shared()?;
    let cases = [
        (json!({"resourceName": "a"}), json!({"resourceName": "b"}), "resourceName is immutable"),
        (json!({"resourceName": "a"}), json!({}), "resourceName is immutable"),
        (json!({}), json!({"resourceName": "a"}), "resourceName is immutable"),
        (json!({}), json!({"resourcePrefix": "example.com"}), "resourcePrefix is immutable"),
        (json!({}), json!({"resourcePer": "Link"}), "resourcePer is immutable"),
        (json!({}), json!({"type": "HostDevice"}), "type is immutable"),
    ];
    for (i, (before, after, words)) in cases.iter().enumerate() {
        let name = format!("immutable-{i}");
        api.replace(&pool(&name, before))?;
        let refusal =
            api.replace(&pool(&name, after)).err().with_context(|| format!("{before} became {after}"))?;
        assert!(format!("{refusal:#}").contains(words), "{before} to {after}: {refusal:#}");
        let mut harmless = before.clone();
        harmless["priority"] = 7.into();
        api.replace(&pool(&name, &harmless))?;
        api.kubectl.run(&["delete", "mrp", &name])?;
    }
    Ok(())
}

#[test]
fn defaults_are_stored_with_the_object_but_not_in_items_of_lists() -> Result<()> {
    let api = Api::shared()?;
    let spec = json!({
        "health": {"carrier": "Ignored"},
        "macvtap": {"owner": {"uid": 1000}},
        "rollout": {"type": "Staged", "staged": {}},
        "networks": [{
            "name": "net",
            "namespaces": {"names": ["a"]},
            "ipam": {"kubeOVN": {}},
            "capabilities": {"mac": true},
        }],
    });
    api.replace(&pool("defaults-some", &spec))?;
    api.replace(&pool("defaults-none", &json!({})))?;
    let stored = |name: &str| api.kubectl.get("", &format!("mrp/{name}")).map(|pool| pool["spec"].clone());
    let common = json!({
        "advertisement": "Enabled",
        "allocation": "Spread",
        "excludeDefaultRoute": false,
        "links": [{"names": ["dp0"]}],
        "overlap": "Exclusive",
        "priority": 0,
        "resourcePer": "Pool",
        "resourcePrefix": "macvtap.network.kubevirt.io",
        "tapOnly": "Forbidden",
        "topology": "Hint",
        "type": "Macvtap",
        "health": {"carrier": "Required", "downDelaySeconds": 3, "upDelaySeconds": 5},
        "rollout": {"type": "AllAtOnce"},
    });
    assert_eq!(stored("defaults-none")?, common);
    let mut some = common;
    some["health"]["carrier"] = "Ignored".into();
    some["macvtap"] = json!({
        "mode": "Bridge", "promiscuous": false, "allMulticast": true, "owner": {"uid": 1000, "gid": 107},
    });
    some["rollout"] = json!({"type": "Staged", "staged": {"batch": "10%", "maxDegraded": 1}});
    // Argo CD compares items as a whole: what was added to one would be a difference for ever.
    some["networks"] = spec["networks"].clone();
    assert_eq!(stored("defaults-some")?, some);
    api.kubectl.run(&["delete", "mrp", "defaults-none", "defaults-some"])?;
    Ok(())
}

#[test]
fn unknown_fields_are_refused_by_name() -> Result<()> {
    let api = Api::shared()?;
    let refusal =
        api.create_dry(&pool("unknown", &json!({"lowerDevice": "eth0"}))).expect_err("it was taken");
    assert!(format!("{refusal:#}").contains("lowerDevice"), "{refusal:#}");
    Ok(())
}

#[test]
fn kubectl_get_prints_what_a_person_wants_to_see() -> Result<()> {
    let api = Api::shared()?;
    let time = "2026-01-01T00:00:00Z";
    let ready = json!({
        "type": "Ready", "status": "False", "reason": "NodesNotReady", "message": "1 of 2", "lastTransitionTime": time,
    });
    api.replace(&pool("columns", &json!({"priority": 7, "macvtap": {"mode": "VEPA"}})))?;
    let status = json!({
        "resource": "macvtap.network.kubevirt.io/columns",
        "nodes": {"summary": "1/2"},
        "devices": {"allocatable": 100, "allocated": 3},
        "links": {"claimed": 2},
        "conditions": [ready],
    });
    api.patch_status("mrp/columns", &status)?;
    let table = api.table(&["get", "mrp", "columns", "-o", "wide"])?;
    let shown = |header: &str| table.get(header).with_context(|| format!("no column {header}: {table:?}"));
    for (header, value) in [
        ("RESOURCE", "macvtap.network.kubevirt.io/columns"),
        ("NODES", "1/2"),
        ("DEVICES", "100"),
        ("ALLOCATED", "3"),
        ("READY", "False"),
        ("REASON", "NodesNotReady"),
        ("PRIORITY", "7"),
        ("TYPE", "Macvtap"),
        ("MODE", "VEPA"),
        ("LINKS", "2"),
    ] {
        assert_eq!(shown(header)?, value, "{header}");
    }
    let state = json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapNodeState",
        "metadata": {"name": "columns"},
        "spec": {"configHash": "sha256:0", "pools": []},
    });
    api.replace(&state)?;
    let totals = json!({"pools": "1/1", "links": "1/3", "allocatable": 50, "allocated": 2});
    api.patch_status(
        "mns/columns",
        &json!({"totals": totals, "conditions": [ready], "agentVersion": "1.2.3"}),
    )?;
    let table = api.table(&["get", "mns", "columns", "-o", "wide"])?;
    let expected = [
        ("POOLS", "1/1"),
        ("LINKS", "1/3"),
        ("DEVICES", "50"),
        ("ALLOCATED", "2"),
        ("READY", "False"),
        ("AGENT", "1.2.3"),
    ];
    for (header, value) in expected {
        assert_eq!(table.get(header).map(String::as_str), Some(value), "{header}");
    }
    let all = api.kubectl.run(&["get", "macvtap", "-o", "name"])?;
    for kind in [
        "macvtapresourcepool.macvtap.network.kubevirt.io/columns",
        "macvtapnodestate.macvtap.network.kubevirt.io/columns",
    ] {
        assert!(all.contains(kind), "{kind} is not in category macvtap: {all}");
    }
    api.kubectl.run(&["delete", "mrp/columns", "mns/columns"])?;
    Ok(())
}

#[test]
fn spec_and_status_are_written_apart() -> Result<()> {
    let api = Api::shared()?;
    let mut pool = pool("apart", &json!({}));
    pool["status"] = json!({"resource": "smuggled"});
    api.replace(&pool)?;
    let fresh = api.kubectl.get("", "mrp/apart")?;
    assert_eq!(fresh["status"].get("resource"), None, "status was written with the spec");
    // What nobody has reported on is not healthy.
    for condition in fresh["status"]["conditions"].as_array().context("no conditions")? {
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("Unknown"), &json!("Pending")));
    }
    api.patch_status("mrp/apart", &json!({"resource": "told"}))?;
    api.replace(&pool)?;
    let found = api.kubectl.wait_until("", "mrp/apart", Duration::from_secs(5), |pool| {
        pool.pointer("/status/resource").and_then(Value::as_str).map(str::to_owned)
    })?;
    assert_eq!(found, "told");
    api.kubectl.run(&["delete", "mrp", "apart"])?;
    Ok(())
}

#[test]
fn every_field_explains_itself() -> Result<()> {
    let api = Api::shared()?;
    let text = api.kubectl.run(&["explain", "mrp.spec.links.names"])?;
    assert!(text.contains("shell patterns"), "{text}");
    let text = api.kubectl.run(&["explain", "mns.status.links.reason"])?;
    assert!(text.contains("Why no pool holds it"), "{text}");
    Ok(())
}

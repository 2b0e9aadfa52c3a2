//! Pure: a network template to a CNI configuration.

use macvtap_crds::v1alpha1::network::{Announce, CniVersion, Dad, Ipam, Migration, NetworkTemplate};
use serde_json::{Map, Value, json};

/// Type of the plugin, hence the name of its executable on the nodes.
const PLUGIN: &str = "macvtap";

/// The CNI configuration of the network `name` in `namespace`: a list when other plugins follow, else a single one.
pub fn config(template: &NetworkTemplate, name: &str, namespace: &str) -> String {
    let mut plugin = Map::new();
    plugin.insert("type".to_owned(), PLUGIN.into());
    if let Some(mtu) = template.mtu {
        plugin.insert("mtu".to_owned(), mtu.into());
    }
    if let Some(promisc) = template.promisc_mode {
        plugin.insert("promiscMode".to_owned(), promisc.into());
    }
    match template.announce {
        Announce::Auto => {}
        Announce::Never => {
            plugin.insert("announce".to_owned(), "Never".into());
        }
    }
    if let Some(dad) = template.dad {
        let dad = match dad {
            Dad::Auto => "Auto",
            Dad::Never => "Never",
        };
        plugin.insert("dad".to_owned(), dad.into());
    }
    match template.migration {
        Migration::Fixed => {}
        Migration::Follow => {
            plugin.insert("migration".to_owned(), "Follow".into());
        }
    }
    if let Some(dns) = &template.dns {
        let fields = [
            ("nameservers", dns.nameservers.as_ref().map(|list| json!(list))),
            ("domain", dns.domain.as_ref().map(|domain| json!(domain))),
            ("search", dns.search.as_ref().map(|list| json!(list))),
            ("options", dns.options.as_ref().map(|list| json!(list))),
        ];
        let dns: Map<String, Value> =
            fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        plugin.insert("dns".to_owned(), dns.into());
    }
    if let Some(ipam) = template.ipam.as_ref().and_then(|ipam| ipam_config(ipam, name, namespace)) {
        plugin.insert("ipam".to_owned(), ipam);
    }
    if let Some(capabilities) = &template.capabilities {
        let declared: Map<String, Value> = [("mac", capabilities.mac), ("ips", capabilities.ips)]
            .into_iter()
            .filter(|(_, declared)| *declared)
            .map(|(key, _)| (key.to_owned(), true.into()))
            .collect();
        if !declared.is_empty() {
            plugin.insert("capabilities".to_owned(), declared.into());
        }
    }
    let mut config = match &template.meta_plugins {
        None => plugin,
        Some(others) => {
            let plugins = std::iter::once(plugin).chain(others.iter().cloned()).map(Value::Object).collect();
            Map::from_iter([("plugins".to_owned(), Value::Array(plugins))])
        }
    };
    config.insert("cniVersion".to_owned(), version(template.cni_version).into());
    config.insert("name".to_owned(), name.into());
    Value::Object(config).to_string()
}

fn version(version: CniVersion) -> &'static str {
    match version {
        CniVersion::V0_3_1 => "0.3.1",
        CniVersion::V0_4_0 => "0.4.0",
        CniVersion::V1_0_0 => "1.0.0",
        CniVersion::V1_1_0 => "1.1.0",
    }
}

fn ipam_config(ipam: &Ipam, name: &str, namespace: &str) -> Option<Value> {
    match (&ipam.kube_ovn, &ipam.raw) {
        (Some(kube_ovn), _) => Some(json!({
            "type": "kube-ovn",
            "server_socket": kube_ovn.server_socket,
            // A subnet of Kube-OVN names its networks like this, and its annotations on pods begin with it.
            "provider": format!("{name}.{namespace}"),
        })),
        (None, Some(raw)) => Some(Value::Object(raw.clone())),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(template: &Value) -> Value {
        let mut full = json!({"name": "p4p1", "namespaces": {"names": ["default"]}});
        full.as_object_mut().unwrap().extend(template.as_object().unwrap().clone());
        let template: NetworkTemplate = serde_json::from_value(full).unwrap();
        serde_json::from_str(&config(&template, "p4p1", "default")).unwrap()
    }

    #[test]
    fn the_smallest_network_says_no_more_than_it_must() {
        assert_eq!(made(&json!({})), json!({"cniVersion": "1.0.0", "name": "p4p1", "type": "macvtap"}));
    }

    #[test]
    fn a_network_with_kube_ovn_is_the_one_its_users_write_by_hand() {
        let template =
            json!({"cniVersion": "0.3.1", "mtu": 1500, "promiscMode": true, "ipam": {"kubeOVN": {}}});
        assert_eq!(
            made(&template),
            json!({
                "cniVersion": "0.3.1", "name": "p4p1", "type": "macvtap", "mtu": 1500, "promiscMode": true,
                "ipam": {
                    "type": "kube-ovn",
                    "server_socket": "/run/openvswitch/kube-ovn-daemon.sock",
                    "provider": "p4p1.default",
                },
            })
        );
    }

    #[test]
    fn another_ipam_is_passed_on_as_it_is() {
        let raw = json!({"type": "host-local", "ranges": [[{"subnet": "192.0.2.0/24"}]], "on": "yes"});
        assert_eq!(made(&json!({"ipam": {"raw": raw}}))["ipam"], raw);
    }

    #[test]
    fn further_plugins_make_a_list_in_their_order() {
        let template = json!({
            "metaPlugins": [{"type": "tuning", "sysctl": {"a": "b"}}, {"type": "bandwidth"}],
            "announce": "Never",
            "dad": "Auto",
            "migration": "Follow",
        });
        assert_eq!(
            made(&template),
            json!({
                "cniVersion": "1.0.0", "name": "p4p1",
                "plugins": [
                    {"type": "macvtap", "announce": "Never", "dad": "Auto", "migration": "Follow"},
                    {"type": "tuning", "sysctl": {"a": "b"}},
                    {"type": "bandwidth"},
                ],
            })
        );
    }

    #[test]
    fn only_declared_capabilities_and_given_dns_settings_appear() {
        let template =
            json!({"capabilities": {"mac": true, "ips": false}, "dns": {"nameservers": ["192.0.2.1"]}});
        let config = made(&template);
        assert_eq!(config["capabilities"], json!({"mac": true}));
        assert_eq!(config["dns"], json!({"nameservers": ["192.0.2.1"]}));
        assert_eq!(made(&json!({"capabilities": {}})).get("capabilities"), None);
    }

    #[test]
    fn the_text_is_the_same_every_time() {
        let template: NetworkTemplate = serde_json::from_value(json!({
            "name": "n", "namespaces": {"names": ["x"]},
            "ipam": {"raw": {"type": "t", "z": 1, "a": {"k": 1, "b": 2}}},
        }))
        .unwrap();
        assert_eq!(config(&template, "n", "x"), config(&template.clone(), "n", "x"));
    }
}

//! Results: what ADD prints, what an IPAM plugin answers and what comes back as `prevResult`.

use crate::protocol::error::{CniError, Code};
use crate::protocol::json;
use crate::protocol::version::Version;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::str::FromStr;

/// A result of any version. Fields that only some versions have are left out when it is written for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniResult {
    /// Interfaces, of this plugin and of those before it.
    #[serde(deserialize_with = "null_is_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(deserialize_with = "null_is_default")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(deserialize_with = "null_is_default")]
    pub dns: Dns,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name; empty in the answer of some IPAM plugins.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub mac: String,
    /// Its MTU, from 1.1.0 on.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "natural")]
    pub mtu: Option<u32>,
    /// The namespace; empty for the node's.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub sandbox: String,
    /// What other plugins said beside that.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// Address and prefix length.
    #[serde(deserialize_with = "net")]
    pub address: IpNet,
    /// The router.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_address")]
    pub gateway: Option<IpAddr>,
    /// Place of its interface in the list of interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "natural")]
    pub interface: Option<usize>,
}

/// One route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// The destination; absent means everything of the router's family.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "optional_net")]
    pub dst: Option<IpNet>,
    /// The router; absent: the interface's own.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "optional_address")]
    pub gw: Option<IpAddr>,
    /// Largest packet on this route, in bytes; from 1.1.0 on, as all that follows.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "natural")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to ask peers on this route for, in bytes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "natural")]
    pub advmss: Option<u32>,
    /// Of two routes to one destination, the one with the lower number is used.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "natural")]
    pub priority: Option<u32>,
    /// The routing table; absent: the main one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "natural")]
    pub table: Option<u32>,
    /// How far away the destination is, by the kernel's numbers (`RT_SCOPE_*`).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "natural")]
    pub scope: Option<u8>,
    /// What other plugins said beside that.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Servers.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub domain: String,
    /// Domains to search.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads a result of any version. `whose` begins the message when it cannot be read.
    pub fn parse(mut value: Value, whose: &str, code: Code) -> Result<Self, CniError> {
        if let Value::Object(result) = &mut value {
            respell(result);
        } else {
            let shown: String = value.to_string().chars().take(200).collect();
            return Err(CniError::new(
                code,
                format!("{whose} is not a CNI result: {shown} is not a JSON object"),
            ));
        }
        let parsed = serde_json::from_value(value);
        parsed.map_err(|error| CniError::new(code, format!("{whose} is not a CNI result: {error}")))
    }

    /// The form on standard output.
    pub fn to_json(&self, version: Version) -> Value {
        let mut json = Map::new();
        json.insert("cniVersion".into(), version.as_str().into());
        let interfaces = self.interfaces.iter().map(|interface| {
            let mut interface = interface.clone();
            if version < Version::V1_1_0 {
                interface.mtu = None;
            }
            serialized(&interface)
        });
        json.insert("interfaces".into(), interfaces.collect());
        let ips = self.ips.iter().map(|ip| {
            let mut json = serialized(ip);
            if let (true, Value::Object(json)) = (version < Version::V1_0_0, &mut json) {
                let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
                json.insert("version".into(), family.into());
            }
            json
        });
        if !self.ips.is_empty() {
            json.insert("ips".into(), ips.collect());
        }
        if !self.routes.is_empty() {
            json.insert("routes".into(), self.routes.iter().map(serialized).collect());
        }
        json.insert("dns".into(), serialized(&self.dns));
        Value::Object(json)
    }
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The keys of a result, and those of each object in it.
const KEYS: [(&str, &[&str]); 4] = [
    ("interfaces", &["name", "mac", "mtu", "sandbox"]),
    ("ips", &["address", "gateway", "interface"]),
    ("routes", &["dst", "gw", "mtu", "advmss", "priority", "table", "scope"]),
    ("dns", &["nameservers", "domain", "search", "options"]),
];

/// Gives the keys of a result the spelling that is read here.
fn respell(result: &mut Map<String, Value>) {
    for (key, known) in KEYS {
        json::respell(result, &[key]);
        let objects = match result.get_mut(key) {
            Some(Value::Array(list)) => list.as_mut_slice(),
            Some(one) => std::slice::from_mut(one),
            None => &mut [],
        };
        for object in objects.iter_mut().filter_map(Value::as_object_mut) {
            json::respell(object, known);
        }
    }
}

/// These types have only keys that are strings, so writing them cannot fail.
fn serialized(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Go programs write an empty list as `null`.
fn null_is_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's integers have a sign, and programs write -1 for "none".
fn natural<'de, T: TryFrom<i64>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<i64>::deserialize(deserializer)? else { return Ok(None) };
    match T::try_from(number) {
        Ok(number) => Ok(Some(number)),
        Err(_) if number < 0 => Ok(None),
        Err(_) => Err(de::Error::custom(format_args!("{number} is out of range"))),
    }
}

fn net<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    parsed(&String::deserialize(deserializer)?, "an address with prefix length, for example 10.0.0.2/24")
}

fn optional_net<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| parsed(&text, "a network with prefix length, for example 10.0.0.0/24")).transpose()
}

/// Go programs write a missing address as an empty text.
fn optional_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| parsed(&text, "an address, for example 10.0.0.1")).transpose()
}

/// The types' own errors do not name the value.
fn parsed<T: FromStr, E: de::Error>(text: &str, want: &str) -> Result<T, E> {
    text.parse().map_err(|_| E::custom(format_args!("{text:?} is not {want}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(key in "interfaces|ips|routes|dns|cniVersion", inner in "name|mac|address|gateway|interface|dst|gw|nameservers",
                                            text in "\\PC{0,12}|[0-9a-f:./]{0,20}|-?[0-9]{0,22}|null|\\[\\]|\\{\\}") {
            let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            for json in [json!({&key: &value}), json!({&key: [{&inner: &value}]}), json!({&key: {inner: value}})] {
                if let Ok(result) = CniResult::parse(json, "it", Code::Ipam) {
                    let again = result.to_json(Version::V1_1_0);
                    prop_assert_eq!(CniResult::parse(again, "it", Code::Ipam), Ok(result));
                }
            }
        }
    }

    fn result() -> CniResult {
        let json = json!({
            "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/run/netns/x"}],
            "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0},
                    {"address": "fd00::2/64", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"gw": "10.0.0.9"}],
            "dns": {"nameservers": null},
        });
        CniResult::parse(json, "it", Code::Ipam).unwrap()
    }

    #[test]
    fn a_result_has_the_form_of_the_version_asked_for() {
        let old = result().to_json(Version::V0_4_0);
        assert_eq!(old["cniVersion"], "0.4.0");
        assert_eq!((&old["ips"][0]["version"], &old["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!(old["interfaces"][0].get("mtu"), None);
        let new = result().to_json(Version::V1_1_0);
        assert_eq!(new["ips"][0].get("version"), None);
        assert_eq!(new["interfaces"][0]["mtu"], 1500);
        assert_eq!(new["dns"], json!({}));
    }

    #[test]
    fn what_was_written_is_read_as_it_was() {
        let again = |version| CniResult::parse(result().to_json(version), "it", Code::Ipam).unwrap();
        assert_eq!(again(Version::V1_1_0), result());
        assert_eq!(again(Version::V0_3_1).ips, result().ips);
    }

    #[test]
    fn what_a_go_program_writes_for_nothing_is_nothing() {
        let json = json!({
            "interfaces": [{"name": "net1", "mac": null, "mtu": -1, "sandbox": null}],
            "ips": [{"address": "10.0.0.2/24", "gateway": null, "interface": -1}],
            "routes": [{"dst": null, "gw": "10.0.0.1", "mtu": -1, "priority": null}],
            "dns": {"nameservers": null, "domain": null, "search": null, "options": null},
        });
        let result = CniResult::parse(json, "it", Code::Ipam).unwrap();
        let interface = Interface { name: "net1".into(), ..Interface::default() };
        assert_eq!((&result.interfaces[0], result.ips[0].interface), (&interface, None));
        assert_eq!((result.routes[0].mtu, &result.dns), (None, &Dns::default()));
        let nothing = json!({"interfaces": null, "ips": null, "routes": null, "dns": null});
        assert_eq!(CniResult::parse(nothing, "it", Code::Ipam), Ok(CniResult::default()));
    }

    #[test]
    fn keys_are_read_in_upper_and_lower_case_alike() {
        let json = json!({
            "IPs": [{"Address": "10.0.0.2/24", "GATEWAY": "10.0.0.1"}],
            "Routes": [{"Dst": "11.0.0.0/8", "GW": "10.0.0.1"}, {"dst": "12.0.0.0/8", "Dst": "13.0.0.0/8"}],
            "Interfaces": [{"Name": "net1", "Mac": "02:00:00:00:00:01"}],
            "DNS": {"NameServers": ["10.0.0.1"]},
        });
        let result = CniResult::parse(json, "it", Code::Ipam).unwrap();
        assert_eq!(result.ips[0].gateway, Some("10.0.0.1".parse().unwrap()));
        let destinations = result.routes.iter().map(|route| route.dst.unwrap().to_string());
        assert_eq!(destinations.collect::<Vec<_>>(), ["11.0.0.0/8", "12.0.0.0/8"]);
        assert_eq!((result.interfaces[0].name.as_str(), result.dns.nameservers.len()), ("net1", 1));
    }

    #[test]
    fn a_result_that_is_none_is_an_error_with_the_reason() {
        for json in [json!(3), json!({"ips": [{"address": "10.0.0.300/24"}]}), json!({"ips": [{}]})] {
            let error = CniResult::parse(json, "the answer", Code::Ipam).unwrap_err();
            assert!(error.message.starts_with("the answer is not a CNI result: "));
        }
    }
}

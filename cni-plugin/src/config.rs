//! The network configuration: a tenant wrote it, so every value is judged here, once.

pub mod kube_ovn;
mod network;
mod value;

use crate::protocol::environment::Args;
use crate::protocol::error::{CniError, Code};
use crate::protocol::json;
use crate::protocol::result::{CniResult, Dns};
use crate::protocol::version::Version;
use crate::settings::Settings;
use macvtap::mac::MacAddr;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Component, Path};
use tracing::warn;
use value::{is_never, name, number, object, string, version, wrong};

pub use network::{Announce, Dad, Ipam, Migration, Network};

/// Ethernet's least MTU in Linux, and the largest a macvtap may have.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 68..=65_535;

/// Plugins that must not be run as IPAM: they would run us.
const NEVER_IPAM: [&str; 5] = ["macvtap", EHOST_DEVICE, "multus", "multus-shim", "multus-daemon"];

/// The other name under which this plugin may be installed: configurations of the ehost-device plugin work unchanged if
/// they go by `deviceID`.
const EHOST_DEVICE: &str = "ehost-device";

/// Keys by which that plugin let the configuration choose any NIC of the node.
const NIC_KEYS: [&str; 3] = ["device", "hwaddr", "kernelpath"];

/// Keys by which other plugins let the configuration choose a file to write to.
const LOG_KEYS: [&str; 9] =
    ["log", "logfile", "logpath", "logdir", "loglevel", "logging", "logoptions", "logtofile", "logtostderr"];

/// The key of the attachments that a GC keeps, under both names that the text of specification 1.1.0 has for it. The
/// reference library sends both (containernetworking/cni issue 1101), other runtimes one.
const VALID_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The configuration as it came. Its version is known and it has a name.
#[derive(Clone, Debug)]
pub struct Document {
    /// The specification's version it is written for.
    pub version: Version,
    /// Name of the network.
    pub name: String,
    json: Map<String, Value>,
}

impl Document {
    /// Reads standard input.
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let json = object(stdin)?;
        let version = version(&json)?;
        let name = name(&json)?;
        Ok(Self { version, name, json })
    }

    /// Reads standard input for a DEL: a pod must be able to go whatever its author wrote. With an unknown version the rest
    /// still means something; with an invalid name, or without JSON, the attachment is known by container and interface,
    /// and an ADD went no further than to refuse such a configuration.
    pub fn parse_for_del(stdin: &[u8]) -> Self {
        let parsed = object(stdin).and_then(|json| Ok((name(&json)?, json)));
        let (name, json) = parsed.unwrap_or_else(|error| {
            warn!(%error, "configuration ignored, the attachment is looked for by container and interface");
            <(String, Map<String, Value>)>::default()
        });
        let version = version(&json).unwrap_or_else(|error| {
            warn!(%error, "taken for the newest version");
            Version::NEWEST
        });
        Self { version, name, json }
    }

    /// Returns the version of a configuration that may be invalid otherwise, if it is one that is supported.
    pub fn version_of(stdin: &[u8]) -> Option<Version> {
        version(&object(stdin).ok()?).ok()
    }

    /// Everything ADD and CHECK need.
    pub fn network(&self, args: &Args, settings: &Settings) -> Result<Network, CniError> {
        let json = &self.json;
        self.refuse_log_keys()?;
        if json.get("type").and_then(Value::as_str) == Some(EHOST_DEVICE) {
            self.refuse_nic_keys()?;
        }
        if let Some(other) =
            self.json.get("runtimeConfig").filter(|runtime| !runtime.is_object() && !runtime.is_null())
        {
            return Err(wrong("runtimeConfig", other, "an object, which the runtime fills in"));
        }
        let ipam = self.ipam(settings)?;
        if ipam.is_none()
            && self.runtime("ips").is_some_and(|ips| ips.as_array().is_none_or(|ips| !ips.is_empty()))
        {
            let ips = self.runtime("ips").unwrap_or_default();
            return Err(wrong(
                "runtimeConfig.ips",
                &ips,
                "left out, or given an ipam that assigns it, for example {\"type\": \"static\"}",
            ));
        }
        Ok(Network {
            device_id: self.device_id()?,
            mac: self.mac(args)?,
            mtu: self.mtu()?,
            mode: match string(json, "", "mode", "bridge, vepa, private or passthru")? {
                Some(mode) => Some(mode.parse().map_err(|_| {
                    wrong(
                        "mode",
                        &mode.into(),
                        "bridge, vepa, private or passthru, as the pool says, or left out",
                    )
                })?),
                None => None,
            },
            promiscuous: match json.get("promiscMode") {
                None | Some(Value::Null) => None,
                Some(Value::Bool(on)) => Some(*on),
                Some(other) => return Err(wrong("promiscMode", other, "true or false")),
            },
            owner: number(json, "owner", 0..=u64::from(u32::MAX - 1), "a user ID")?,
            group: number(json, "group", 0..=u64::from(u32::MAX - 1), "a group ID")?,
            announce: if is_never(json, "announce")? == Some(true) {
                Announce::Never
            } else {
                Announce::Auto
            },
            dad: dad(json)?,
            migration: self.migration(ipam.is_some())?,
            ipam,
            dns: match json.get("dns") {
                None | Some(Value::Null) => Dns::default(),
                Some(dns) => {
                    let want = "an object with nameservers, domain, search and options";
                    let parsed = dns.is_object().then(|| serde_json::from_value(dns.clone()).ok());
                    parsed.flatten().ok_or_else(|| wrong("dns", dns, want))?
                }
            },
            prev_result: self.prev_result()?,
        })
    }

    fn migration(&self, has_ipam: bool) -> Result<Migration, CniError> {
        match string(&self.json, "", "migration", "\"Fixed\" or \"Follow\"")?.as_deref() {
            None | Some("Fixed") => Ok(Migration::Fixed),
            // Its own address would answer for the guest before that is there.
            Some("Follow") if has_ipam => {
                let want = "left out where ipam gives the pod an address: the pod would answer for a guest that is still elsewhere";
                Err(wrong("migration", &"Follow".into(), want))
            }
            Some("Follow") => Ok(Migration::Follow),
            Some(other) => Err(wrong("migration", &other.into(), "\"Fixed\" or \"Follow\"")),
        }
    }

    /// The device, which Multus fills in at the top or in `runtimeConfig`.
    pub fn device_id(&self) -> Result<Option<String>, CniError> {
        let want = "a device ID, which Multus fills in";
        let top = string(&self.json, "", "deviceID", want)?;
        let runtime = match self.json.get("runtimeConfig") {
            Some(Value::Object(runtime)) => string(runtime, "runtimeConfig.", "deviceID", want)?,
            _ => None,
        };
        match (top, runtime) {
            (Some(top), Some(runtime)) if top != runtime => Err(wrong(
                "deviceID",
                &top.into(),
                &format!("the same as runtimeConfig.deviceID, which is {runtime:?}"),
            )),
            (top, runtime) => Ok(top.or(runtime)),
        }
    }

    /// Whether it says anything about addresses.
    pub fn has_ipam(&self) -> bool {
        self.json.get("ipam").and_then(Value::as_object).is_some_and(|ipam| !ipam.is_empty())
    }

    /// The IPAM plugin; `{}` means none.
    pub fn ipam(&self, settings: &Settings) -> Result<Option<Ipam>, CniError> {
        let ipam = match self.json.get("ipam") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(ipam)) if ipam.is_empty() => return Ok(None),
            Some(Value::Object(ipam)) => ipam,
            Some(other) => return Err(wrong("ipam", other, "an object; {} means no addresses")),
        };
        let want = "the name of an IPAM plugin, without '/'; write ipam: {} for no addresses";
        let plugin = string(ipam, "ipam.", "type", want)?.unwrap_or_default();
        let is_file_name = matches!(Path::new(&plugin).components().next(), Some(Component::Normal(_)));
        if !is_file_name || plugin.contains(['/', '\0']) {
            return Err(wrong("ipam.type", &plugin.into(), want));
        }
        if NEVER_IPAM.contains(&plugin.as_str()) {
            return Err(wrong("ipam.type", &plugin.into(), "an IPAM plugin, which this one is not"));
        }
        let kube_ovn = (plugin == kube_ovn::PLUGIN).then(|| kube_ovn::judge(ipam, settings)).transpose()?;
        Ok(Some(Ipam { plugin, kube_ovn }))
    }

    /// What the plugins before this one did.
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        match self.json.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(result) => CniResult::parse(result.clone(), "prevResult", Code::Config).map(Some),
        }
    }

    /// The attachments that a GC keeps, as container ID and interface; none when the configuration has no list.
    /// Go writes an empty list as `null`.
    pub fn valid_attachments(&self) -> Result<Option<HashSet<(String, String)>>, CniError> {
        let want = "a list of {containerID, ifname}, which the runtime fills in";
        let mut valid = None;
        for (key, list) in VALID_KEYS.into_iter().filter_map(|key| Some((key, self.json.get(key)?))) {
            let valid: &mut HashSet<_> = valid.get_or_insert_default();
            let entries = match list {
                Value::Null => continue,
                Value::Array(entries) => entries,
                other => return Err(wrong(key, other, want)),
            };
            let pair = |entry: &Value| {
                let mut entry = entry.as_object()?.clone();
                json::respell(&mut entry, &["containerID", "ifname"]);
                let text = |key| entry.get(key)?.as_str().map(str::to_owned);
                text("containerID").zip(text("ifname"))
            };
            for entry in entries {
                valid.insert(pair(entry).ok_or_else(|| wrong(key, entry, want))?);
            }
        }
        Ok(valid)
    }

    /// The configuration for an IPAM plugin: ours without the device, which kube-ovn takes for a virtual function of a
    /// NIC that it renames and sets down. Every version we speak has results with interfaces; a plugin reads only those of
    /// its own version.
    pub fn for_ipam(&self, version: Version) -> Value {
        let mut json = self.json.clone();
        json.remove("deviceID");
        if let Some(Value::Object(runtime)) = json.get_mut("runtimeConfig") {
            runtime.remove("deviceID");
        }
        // A plugin that knows one name only would take the other one's list for an empty one, and free every address.
        for [key, other] in [VALID_KEYS, [VALID_KEYS[1], VALID_KEYS[0]]] {
            if let (None, Some(list)) = (json.get(key), json.get(other)) {
                json.insert(key.into(), list.clone());
            }
        }
        if version != self.version
            && let Some(previous) = json.get_mut("prevResult").filter(|previous| !previous.is_null())
            && let Ok(result) = CniResult::parse(previous.take(), "prevResult", Code::Config)
        {
            *previous = result.to_json(version);
        }
        json.insert("cniVersion".into(), version.as_str().into());
        Value::Object(json)
    }

    /// Whether an IPAM plugin is asked the same with it.
    pub fn leases_as(&self, other: &Self) -> bool {
        let asked = |document: &Self| {
            let mut json = document.for_ipam(document.version);
            // The list of a GC, and the results of other plugins.
            for key in VALID_KEYS.into_iter().chain(["prevResult", "cniVersion"]) {
                json.as_object_mut().map(|json| json.remove(key));
            }
            json
        };
        asked(self) == asked(other)
    }

    /// Returns the whole configuration but the result of the plugins before.
    pub fn without_previous(&self) -> Value {
        let mut json = self.json.clone();
        json.remove("prevResult");
        Value::Object(json)
    }

    fn runtime(&self, key: &str) -> Option<Value> {
        self.json.get("runtimeConfig")?.get(key).filter(|value| !value.is_null()).cloned()
    }

    fn mtu(&self) -> Result<Option<u32>, CniError> {
        let want = format!(
            "a number from {} to {}, or left out for the lower link's",
            MTU_RANGE.start(),
            MTU_RANGE.end()
        );
        // Programs that write a configuration from a struct write 0 for "not given".
        if self.json.get("mtu").is_some_and(|mtu| mtu.as_u64() == Some(0)) {
            return Ok(None);
        }
        number(&self.json, "mtu", MTU_RANGE, &want)
    }

    /// The address by precedence: runtimeConfig, `CNI_ARGS`, args.cni, configuration. Each one given must be valid.
    fn mac(&self, args: &Args) -> Result<Option<MacAddr>, CniError> {
        let want = "a unicast MAC address, for example \"02:00:00:00:00:01\"";
        let at = |object: Option<&Map<String, Value>>, prefix: &str| match object {
            Some(object) => {
                let text = string(object, prefix, "mac", want)?;
                let parse = |text: String| {
                    text.parse().map_err(|_| wrong(&format!("{prefix}mac"), &text.into(), want))
                };
                text.map(parse).transpose()
            }
            None => Ok(None),
        };
        let runtime = at(self.json.get("runtimeConfig").and_then(Value::as_object), "runtimeConfig.")?;
        let cni_args = args.mac.as_ref().map(|text| {
            text.parse::<MacAddr>().map_err(|error| {
                CniError::new(
                    Code::Environment,
                    format!("environment variable CNI_ARGS has MAC={text}: {error}"),
                )
            })
        });
        let nested = at(self.json.get("args").and_then(|args| args.get("cni")?.as_object()), "args.cni.")?;
        let top = at(Some(&self.json), "")?;
        Ok(runtime.or(cni_args.transpose()?).or(nested).or(top))
    }

    /// What has no meaning where the pod gets a whole NIC.
    pub fn refuse_for_nic(&self) -> Result<(), CniError> {
        self.refuse_nic_keys()?;
        let given = |key: &str| self.json.get(key).filter(|value| !value.is_null() && **value != "");
        let meaningless = ["mode", "owner", "group"].into_iter().find_map(|key| Some((key, given(key)?)));
        match meaningless {
            Some((key, value)) => {
                Err(wrong(key, value, "left out: a whole NIC has neither a macvtap mode nor a device node"))
            }
            None => Ok(()),
        }
    }

    fn refuse_nic_keys(&self) -> Result<(), CniError> {
        let given = |key: &str| self.json.get(key).filter(|value| !value.is_null() && **value != "");
        match NIC_KEYS.into_iter().find_map(|key| Some((key, given(key)?))) {
            Some((key, value)) => {
                let want = "left out: a pod gets the NIC that it was allocated; select the NIC in a resource of type HostDevice \
                            and name that resource in the annotation k8s.v1.cni.cncf.io/resourceName";
                Err(wrong(key, value, want))
            }
            None => Ok(()),
        }
    }

    fn refuse_log_keys(&self) -> Result<(), CniError> {
        let normal = |key: &str| key.replace(['_', '-'], "").to_ascii_lowercase();
        match self.json.iter().find(|(key, _)| LOG_KEYS.contains(&normal(key).as_str())) {
            Some((key, value)) => {
                let want = "left out: logging is the node's own setting (logFile and logLevel in cni.json)";
                Err(wrong(key, value, want))
            }
            None => Ok(()),
        }
    }
}

/// `dad`. An address that must not be announced yet still has a holder who would object, so `announce: Never` alone means
/// `dad: Never`.
fn dad(json: &Map<String, Value>) -> Result<Dad, CniError> {
    let is_off = match is_never(json, "dad")? {
        Some(is_off) => is_off,
        None => is_never(json, "announce")? == Some(true),
    };
    Ok(if is_off { Dad::Never } else { Dad::Auto })
}

#[cfg(test)]
mod tests;

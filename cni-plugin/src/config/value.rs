//! Single values of a configuration, and how a wrong one is reported.

use crate::protocol::error::{CniError, Code};
use crate::protocol::json;
use crate::protocol::version::Version;
use serde_json::{Map, Value};

/// The longest name of a network, in bytes: that of a file.
const NAME_MAX: usize = 255;

/// The keys that are read, by the objects that hold them.
const KNOWN_KEYS: [(&[&str], &[&str]); 5] = [
    (
        &[],
        &[
            "cniVersion",
            "name",
            "type",
            "deviceID",
            "mac",
            "mtu",
            "mode",
            "promiscMode",
            "owner",
            "group",
            "dad",
            "announce",
            "migration",
            "ipam",
            "dns",
            "runtimeConfig",
            "args",
            "prevResult",
        ],
    ),
    (&["runtimeConfig"], &["mac", "ips", "deviceID"]),
    (&["ipam"], &["type"]),
    (&["args"], &["cni"]),
    (&["args", "cni"], &["mac"]),
];

/// Gives keys of a configuration the spelling that is read here.
fn use_known_keys(json: &mut Map<String, Value>) {
    for (path, known) in KNOWN_KEYS {
        let object = path.iter().try_fold(&mut *json, |object, key| object.get_mut(*key)?.as_object_mut());
        if let Some(object) = object {
            json::respell(object, known);
        }
    }
}

/// Reads standard input, which must be a JSON object.
pub(super) fn object(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    let undecoded = |problem: String| {
        CniError::new(Code::Decode, format!("the network configuration on standard input is {problem}"))
    };
    match json::decode(stdin) {
        Ok(Value::Object(mut json)) => {
            use_known_keys(&mut json);
            Ok(json)
        }
        Ok(_) => Err(undecoded("no JSON object".to_owned())),
        Err(error) => Err(undecoded(format!("not JSON: {error}"))),
    }
}

/// The version that the configuration is written for.
pub(super) fn version(json: &Map<String, Value>) -> Result<Version, CniError> {
    let asked = string(json, "", "cniVersion", "a version, for example \"1.0.0\"")?;
    Version::of(asked.as_deref()).map_err(|error| CniError::new(Code::IncompatibleVersion, error.to_string()))
}

/// The network's name, which IPAM plugins take for the name of a directory.
pub(super) fn name(json: &Map<String, Value>) -> Result<String, CniError> {
    let name = string(json, "", "name", "the network's name")?.unwrap_or_default();
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !begins_well || !name.bytes().all(valid) || name.len() > NAME_MAX {
        let want = format!(
            "a name of at most {NAME_MAX} letters, digits, '_', '.' and '-' that begins with a letter or digit"
        );
        return Err(wrong("name", &name.into(), &want));
    }
    Ok(name)
}

/// A text; absent, `null` and the empty one, which programs that write a configuration from a struct leave, are none.
pub(super) fn string(
    object: &Map<String, Value>,
    prefix: &str,
    key: &str,
    want: &str,
) -> Result<Option<String>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(other) => Err(wrong(&format!("{prefix}{key}"), other, want)),
    }
}

/// A natural number in this range; absent and `null` are none.
pub(super) fn number(
    object: &Map<String, Value>,
    key: &str,
    range: std::ops::RangeInclusive<u64>,
    want: &str,
) -> Result<Option<u32>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().filter(|number| range.contains(number));
            let number = number.and_then(|number| u32::try_from(number).ok());
            number.map(Some).ok_or_else(|| wrong(key, value, want))
        }
    }
}

/// Whether a key is `Never`; none if it is absent.
pub(super) fn is_never(json: &Map<String, Value>, key: &str) -> Result<Option<bool>, CniError> {
    match string(json, "", key, "\"Auto\" or \"Never\"")?.as_deref() {
        None => Ok(None),
        Some("Auto") => Ok(Some(false)),
        Some("Never") => Ok(Some(true)),
        Some(other) => Err(wrong(key, &other.into(), "\"Auto\" or \"Never\"")),
    }
}

/// The error for a value: its key, the value and what it must be.
pub(super) fn wrong(key: &str, value: &Value, want: &str) -> CniError {
    let shown: String = value.to_string().chars().take(200).collect();
    CniError::new(Code::Config, format!("network configuration: {key} is {shown}; it must be {want}"))
}

//! What an IPAM plugin answers. Pure.

use super::{kube_ovn, route};
use crate::config::kube_ovn::PLUGIN as KUBE_OVN;
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::CniResult;
use macvtap::mac::MacAddr;
use serde_json::Value;
use std::collections::HashSet;
use std::net::IpAddr;

/// What the answer of a plugin to an ADD means: addresses, and routes that are complete.
pub fn understand(answer: Value, plugin: &str) -> Result<CniResult, CniError> {
    let is_kube_ovns = plugin == KUBE_OVN;
    let error = error_text(&answer);
    let mut result = CniResult::parse(answer, "its answer", Code::Ipam)?;
    if result.ips.is_empty() {
        let reason = if is_kube_ovns { kube_ovn::VERSION_MISMATCH } else { "its answer has no ips" };
        return Err(CniError::new(Code::Ipam, error.unwrap_or_else(|| reason.to_owned())));
    }
    keep_first_of_each_ipv6(&mut result);
    if let Some(ip) = result.ips.iter().find(|ip| !is_a_hosts(ip.address.addr())) {
        let message = format!("it gave {}, which no host can have", ip.address);
        return Err(CniError::new(Code::Ipam, message));
    }
    if let Some(mac) = mac(&result).filter(|mac| mac.parse::<MacAddr>().is_err()) {
        let message = format!("it gave the MAC address {mac:?}, which is not a unicast address");
        return Err(CniError::new(Code::Ipam, message));
    }
    if is_kube_ovns {
        kube_ovn::complete(&mut result);
    }
    route::complete(&mut result)?;
    Ok(result)
}

/// The message and the details of an error, as plugins print one, also those that succeed nevertheless.
pub(super) fn error_text(answer: &Value) -> Option<String> {
    let text = |key: &str| answer.get(key)?.as_str().filter(|text| !text.is_empty());
    let message = text("msg")?;
    Some(text("details").map_or_else(|| message.to_owned(), |details| format!("{message}: {details}")))
}

/// Drops an IPv6 address that is there already with another prefix length: a link has it once only.
fn keep_first_of_each_ipv6(result: &mut CniResult) {
    let mut seen = HashSet::new();
    result.ips.retain(|ip| ip.address.addr().is_ipv4() || seen.insert(ip.address.addr()));
}

/// Whether a host can have the address. The kernel takes most others without a word, and 0.0.0.0 for none.
fn is_a_hosts(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !broadcast && !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

/// The same, as the plugin wrote it.
fn mac(result: &CniResult) -> Option<&str> {
    let place = result.ips.iter().find_map(|ip| ip.interface).unwrap_or(0);
    result.interfaces.get(place).map(|interface| interface.mac.as_str()).filter(|mac| !mac.is_empty())
}

/// The address of the interface that the plugin chose, if it chose one.
pub(crate) fn leased_mac(result: &CniResult) -> Option<MacAddr> {
    mac(result)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_link_has_an_ipv6_address_once_whatever_its_prefixes() {
        let ips =
            ["fd09::2/64", "10.9.0.2/24", "fd09::2/128", "10.9.0.2/32"].map(|ip| json!({"address": ip}));
        let result = understand(json!({"ips": ips}), "odd").unwrap();
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
        assert_eq!(addresses, ["fd09::2/64", "10.9.0.2/24", "10.9.0.2/32"]);
    }
}

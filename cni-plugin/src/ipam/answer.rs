//! What an IPAM plugin answers. Pure.

use super::{kube_ovn, route};
use crate::config::kube_ovn::PLUGIN as KUBE_OVN;
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::CniResult;
use macvtap::mac::MacAddr;
use serde_json::Value;
use std::net::IpAddr;

/// What the answer of a plugin to an ADD means: addresses, and routes that are complete.
pub fn understand(answer: Value, plugin: &str) -> Result<CniResult, CniError> {
    let is_kube_ovns = plugin == KUBE_OVN;
    let mut result = CniResult::parse(answer, "its answer", Code::Ipam)?;
    if result.ips.is_empty() {
        let reason = if is_kube_ovns { kube_ovn::VERSION_MISMATCH } else { "its answer has no ips" };
        return Err(CniError::new(Code::Ipam, reason));
    }
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

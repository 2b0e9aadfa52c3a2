//! The readers, each with what must be true of what it reads.

use macvtap::device_id::DeviceId;
use macvtap::link::Link;
use macvtap::link::NicLink;
use macvtap::pci::PciAddress;
use macvtap::record::Attachment;
use macvtap::table::DeviceTable;
use macvtap_cni::config::Document;
use macvtap_cni::ipam;
use macvtap_cni::protocol::environment::Args;
use macvtap_cni::protocol::error::Code;
use macvtap_cni::protocol::result::CniResult;
use macvtap_cni::protocol::version::Version;
use macvtap_cni::settings::Settings;
use serde_json::Value;
use std::collections::HashSet;
use std::time::Instant;

fn known(code: u32, codes: &[Code]) {
    assert!(codes.iter().any(|known| *known as u32 == code), "code {code}");
}

pub(super) fn configuration(bytes: &[u8]) {
    let document = Document::parse_for_del(bytes);
    assert!(document.name.len() <= 255 && !document.name.contains('/'));
    let document = match Document::parse(bytes) {
        Ok(document) => document,
        Err(error) => return known(error.code, &[Code::IncompatibleVersion, Code::Decode, Code::Config]),
    };
    let settings = Settings::default();
    let args = Args { mac: Some("02:00:00:00:00:02".to_owned()), ..Args::default() };
    match document.network(&args, &settings) {
        Ok(network) => {
            assert!(network.mac.is_some());
            assert!(network.mtu.is_none_or(|mtu| (68..=65_535).contains(&mtu)));
            if let Some(ipam) = &network.ipam {
                assert!(!ipam.plugin.contains('/') && ipam.plugin != "macvtap");
                assert_eq!(ipam.kube_ovn.is_some(), ipam.plugin == "kube-ovn");
                let below = |socket: &std::path::Path| socket.starts_with("/run/openvswitch");
                assert!(ipam.kube_ovn.as_ref().is_none_or(|kube_ovn| below(&kube_ovn.socket)));
            }
        }
        Err(error) => known(error.code, &[Code::Config]),
    }
    let _ = (document.device_id(), document.valid_attachments(), document.refuse_for_nic());
    let sent = document.for_ipam(Version::V1_0_0);
    assert!(sent.get("deviceID").is_none() && sent["cniVersion"] == "1.0.0");
}

pub(super) fn arguments(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Args::parse(text) {
        Ok(args) => assert!(args.mac.is_none_or(|mac| !mac.is_empty())),
        Err(error) => known(error.code, &[Code::Environment]),
    }
    if let Ok(id) = text.parse::<DeviceId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string(), text);
    }
}

pub(super) fn result(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    let Ok(result) = CniResult::parse(json, "it", Code::Config) else { return };
    for version in Version::ALL {
        let written = result.to_json(version);
        let again = CniResult::parse(written, "it", Code::Config).unwrap();
        assert_eq!(again.ips.len(), result.ips.len());
        if version == Version::NEWEST {
            assert_eq!(again, result);
        }
    }
}

pub(super) fn answer(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return };
    for plugin in ["host-local", "kube-ovn"] {
        match ipam::understand(json.clone(), plugin) {
            Ok(lease) => {
                assert!(!lease.ips.is_empty());
                assert!(lease.routes.iter().all(|route| route.dst.is_some()));
            }
            Err(error) => known(error.code, &[Code::Ipam]),
        }
    }
}

pub(super) fn table(bytes: &[u8]) {
    let Ok(table) = DeviceTable::parse(bytes) else { return };
    let mut seen = HashSet::new();
    for name in table.resources.keys() {
        for slot in (0..8).chain([999_999]) {
            if let Some(device) = table.macvtap(&DeviceId::new(name.clone(), slot)) {
                assert!(seen.insert(device.ifindex), "two devices have index {}", device.ifindex);
                assert!((0x0100_0000..=0x7fef_ffff).contains(&device.ifindex));
            }
        }
    }
    let mut nics = HashSet::new();
    for (id, found) in table.nics() {
        assert_eq!(table.nic(found.nic.address).unwrap().1.nic, found.nic);
        assert!(table.device(&id).is_some() && nics.insert(id), "one device for each NIC");
    }
}

pub(super) fn record(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Attachment>(bytes) else { return };
    let again: Attachment = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(again, record);
}

pub(super) fn settings(bytes: &[u8]) {
    let Ok(settings) = serde_json::from_slice::<Settings>(bytes) else { return };
    // What waits until a point in time adds this to the present.
    let _ = (Instant::now() + settings.ipam_timeout(), Instant::now() + settings.ipam_retry());
}

pub(super) fn link(bytes: &[u8]) {
    if let Ok(link) = Link::parse(bytes) {
        assert!(!link.name.is_empty());
    }
    if let Ok(nic) = NicLink::parse(bytes) {
        assert_eq!(Some(nic.link), Link::parse(bytes).ok());
    }
}

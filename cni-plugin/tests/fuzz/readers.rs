//! The readers, each with what must be true of what it reads.

use macvtap::device_id::DeviceId;
use macvtap::host_ties::{DefaultRoutes, addressed, nexthop, nexthop_id};
use macvtap::link::Link;
use macvtap::link::NicLink;
use macvtap::netlink::answer::{Answer, List, ListEnd, read, read_list};
use macvtap::pci::PciAddress;
use macvtap::record::Attachment;
use macvtap::table::DeviceTable;
use macvtap::uevent::Announced;
use macvtap_cni::config::Document;
use macvtap_cni::ipam;
use macvtap_cni::protocol::environment::{Args, Command, Variables};
use macvtap_cni::protocol::error::Code;
use macvtap_cni::protocol::json;
use macvtap_cni::protocol::result::CniResult;
use macvtap_cni::protocol::version::Version;
use macvtap_cni::settings::Settings;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Instant;

/// The index of the tap that is asked for, and the number of the request.
pub(super) const INDEX: u32 = 16_777_216;
pub(super) const SEQUENCE: u32 = 7;

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

/// The environment as `/proc/<pid>/environ` has it: each variable ends with 0.
pub(super) struct Environment<'b> {
    bytes: &'b [u8],
    /// Instead of that in `bytes`.
    command: Option<&'static str>,
}

impl<'b> Environment<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, command: None }
    }
}

impl Variables for Environment<'_> {
    fn get(&self, name: &str) -> Option<OsString> {
        if let Some(command) = self.command.filter(|_| name == "CNI_COMMAND") {
            return Some(command.into());
        }
        let mut all = self.bytes.split(|byte| *byte == 0);
        let value = all.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        value.map(|value| OsStr::from_bytes(value).to_owned())
    }
}

pub(super) fn environment(bytes: &[u8]) {
    let command = match Command::read(&Environment::new(bytes)) {
        Ok(Some(command)) => command,
        Ok(None) => return,
        Err(error) => return known(error.code, &[Code::Environment]),
    };
    if let Some((container, ifname)) = command.subject() {
        assert!(!container.is_empty() && !container.starts_with('.') && !container.contains('/'));
        assert!((1..=15).contains(&ifname.as_str().len()) && !ifname.as_str().contains(['/', ' ', ':']));
    }
    let Command::Add(added) = command else { return };
    assert!(added.netns.is_absolute());
    match Command::read(&Environment { bytes, command: Some("DEL") }) {
        Ok(Some(Command::Del(deletion))) => {
            assert_eq!((deletion.container_id, deletion.ifname), (added.container_id, added.ifname));
            assert_eq!(deletion.netns, Some(added.netns));
        }
        other => panic!("what was added cannot be deleted: {other:?}"),
    }
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
    let Ok(json) = json::decode(bytes) else { return };
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

/// What messages with newlines between them contain about the tap.
pub(super) fn announced(bytes: &[u8]) -> Announced {
    let messages = bytes.split(|byte| *byte == b'\n');
    messages.fold(Announced::Nothing, |announced, message| announced.and(message, INDEX))
}

pub(super) fn announcements(bytes: &[u8]) {
    let mut announced = Announced::Nothing;
    for message in bytes.split(|byte| *byte == b'\n') {
        let before = announced;
        announced = before.and(message, INDEX);
        match announced {
            Announced::Nothing => assert_eq!(before, Announced::Nothing),
            Announced::Once(_) => assert_ne!(before, Announced::Unclear),
            Announced::Unclear => {}
        }
    }
    assert_eq!(announced, self::announced(bytes));
    // A tap that is announced again is in doubt.
    let again = announced.and(b"add@/devices/virtual/net/a/macvtap/tap16777216\0MAJOR=1\0MINOR=3\0", INDEX);
    assert_eq!(again == Announced::Unclear, announced != Announced::Nothing);
}

pub(super) fn datagram(bytes: &[u8]) {
    let is_errno = |errno: i32| (1..4096).contains(&errno);
    let is_text = |said: Option<String>| said.is_none_or(|said| !said.contains(char::is_control));
    match read(bytes, SEQUENCE) {
        Ok(Answer::Object(range)) => assert!(bytes.get(range).is_some()),
        Ok(Answer::Refused { errno, said }) => assert!(is_errno(errno) && is_text(said)),
        Ok(Answer::Acknowledged | Answer::Stray) => {}
        Err(why) => assert!(!why.is_empty()),
    }
    let mut list = List::default();
    match read_list(bytes, SEQUENCE, &mut list) {
        Ok(ListEnd::Refused { errno, said }) => assert!(is_errno(errno) && is_text(said)),
        Ok(ListEnd::NotYet | ListEnd::Complete) => {}
        Err(why) => assert!(!why.is_empty()),
    }
    let read: usize = list.objects.iter().map(|object| object.len() + 16).sum();
    assert!(read <= bytes.len(), "more was read than there is");
}

/// Whether it is an address, a default route or a nexthop object with a link or another object.
pub(super) fn names_a_link(bytes: &[u8]) -> bool {
    let mut routes = DefaultRoutes::default();
    routes.add(bytes);
    addressed(bytes).is_some() || routes != DefaultRoutes::default() || nexthop(bytes).is_some()
}

pub(super) fn ties(bytes: &[u8]) {
    let _ = addressed(bytes);
    let mut routes = DefaultRoutes::default();
    routes.add(bytes);
    assert!(routes.links.len() * 8 <= bytes.len() && routes.nexthops.len() <= 1);
    assert!(nexthop(bytes).is_none_or(|(id, _)| nexthop_id(bytes) == Some(id)));
}

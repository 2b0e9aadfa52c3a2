//! `macvtap-node-agent links`: every link of this machine, what could be made on it, and why not.

use crate::links::inventory::Inventory;
use crate::links::netlink::{self, LinksError};
use crate::pools::selection;
use serde::Serialize;
use std::io;

/// One link, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkReport {
    name: String,
    ifindex: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alt_names: Vec<String>,
    kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    rtnetlink_kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    mtu: u32,
    admin_up: bool,
    carrier: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed_mbps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pci_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    numa_node: Option<u32>,
    /// The bond, bridge or the like that it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    master: Option<String>,
    /// Whether a default route uses it.
    default_route: bool,
    /// Whether macvtaps in bridge, VEPA and private mode can be made on it.
    shared: Verdict,
    /// Whether it can be given away as a whole (passthru).
    whole: Verdict,
    /// Whether it can be given to a pod itself (type `HostDevice`).
    host_device: Verdict,
}

/// Whether something can be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    possible: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// The report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No runtime.
    #[error("start")]
    Start(#[from] io::Error),
    /// No links.
    #[error(transparent)]
    Links(#[from] LinksError),
}

/// Reads the links of this namespace.
pub fn links() -> Result<Vec<LinkReport>, ReportError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(judge(&runtime.block_on(netlink::inventory())?))
}

/// What can be made on each link.
pub fn judge(inventory: &Inventory) -> Vec<LinkReport> {
    inventory
        .iter()
        .map(|link| {
            let obstacle = selection::macvtap_obstacle(inventory, link);
            let tie = obstacle.clone().or_else(|| selection::tie(inventory, link));
            LinkReport {
                name: link.name.clone(),
                ifindex: link.ifindex,
                alt_names: link.altnames.clone(),
                kind: link.kind.api().as_str(),
                rtnetlink_kind: link.kind.rtnetlink().to_owned(),
                mac: link.own_mac().map(|mac| mac.to_string()),
                mtu: link.mtu,
                admin_up: link.admin_up,
                carrier: link.carrier,
                speed_mbps: link.hardware.speed_mbps,
                driver: link.hardware.driver.clone(),
                pci_address: link.hardware.pci_address.clone(),
                vendor: link.hardware.vendor.clone(),
                numa_node: link.hardware.numa_node,
                master: inventory.master(link),
                default_route: inventory.has_default_route(link.ifindex),
                shared: Verdict::from(obstacle),
                whole: Verdict::from(tie),
                host_device: Verdict::from(selection::host_device_obstacle(inventory, link)),
            }
        })
        .collect()
}

/// One line per link, columns aligned.
pub fn text(links: &[LinkReport]) -> String {
    let header = ["NAME", "KIND", "STATE", "MTU", "DRIVER", "BRIDGE/VEPA/PRIVATE", "PASSTHRU", "HOSTDEVICE"];
    let rows = links.iter().map(|link| {
        let state = match (link.admin_up, link.carrier) {
            (false, _) => "down",
            (true, false) => "no carrier",
            (true, true) => "up",
        };
        [
            link.name.clone(),
            link.kind.to_owned(),
            state.to_owned(),
            link.mtu.to_string(),
            link.driver.clone().unwrap_or_else(|| "-".to_owned()),
            link.shared.text(),
            link.whole.text(),
            link.host_device.text(),
        ]
    });
    let rows: Vec<[String; 8]> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One array of objects.
pub fn json(links: &[LinkReport]) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(links)
}

impl Verdict {
    fn text(&self) -> String {
        match (&self.reason, &self.message) {
            (Some(reason), Some(message)) => format!("no: {reason} ({message})"),
            _ => "yes".to_owned(),
        }
    }
}

impl From<Option<selection::Refusal>> for Verdict {
    fn from(refusal: Option<selection::Refusal>) -> Self {
        Self {
            possible: refusal.is_none(),
            reason: refusal.as_ref().map(|refusal| refusal.reason.as_str()),
            message: refusal.map(|refusal| refusal.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::inventory::tests::{link, nic};
    use crate::links::link::{Kind, Master};

    #[test]
    fn a_link_is_told_with_what_can_be_made_on_it_and_why_not() {
        let mut inventory = Inventory::default();
        let mut port = link(3, "eth1", Kind::Physical);
        port.master = Some(Master { ifindex: 4, kind: "bond".into() });
        let _ = inventory.reset([
            link(1, "lo", Kind::Loopback),
            link(2, "eth0", Kind::Physical),
            port,
            link(4, "bond0", Kind::Bond),
            nic(5, "eth5", 0xa),
        ]);
        let _ = inventory.set_default_routes([2].into());
        let links = judge(&inventory);
        let text = text(&links);
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[1].contains("no: KindNotSupported"), "{text}");
        assert!(rows[2].split_whitespace().take(3).eq(["eth0", "Physical", "up"]), "{text}");
        assert!(rows[2].contains("yes") && rows[2].contains("no: DefaultRoute"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&json(&links).unwrap()).unwrap();
        assert_eq!(json[1]["whole"]["reason"], "DefaultRoute");
        assert_eq!((&json[1]["shared"]["possible"], &json[1]["defaultRoute"]), (&true.into(), &true.into()));
        assert_eq!(
            (&json[2]["shared"]["reason"], &json[2]["master"]),
            (&"EnslavedTo".into(), &"bond0".into())
        );
        for (place, reason) in [(1, "KindNotSupported"), (2, "KindNotSupported"), (3, "KindNotSupported")] {
            assert_eq!(json[place]["hostDevice"]["reason"], reason, "{place}");
        }
        assert_eq!(json[4]["hostDevice"]["possible"], true);
        assert_eq!((&json[3]["shared"]["possible"], json[3].get("master")), (&true.into(), None));
    }
}

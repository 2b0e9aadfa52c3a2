//! Links, through `ip`, and hardware, through the emulator's own control channel: the machine changes itself.

use super::eventually;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Command;

/// Where the emulator listens inside the machine.
const CHANNEL: &str = "/dev/vport0p1";

/// Runs `ip` with these words and gives what it printed.
pub(crate) fn ip(words: &str) -> String {
    ip_may_fail(words).unwrap_or_else(|error| panic!("ip {words}: {error}"))
}

/// Runs `ip`, and gives what it said when it failed.
pub(crate) fn ip_may_fail(words: &str) -> Result<String, String> {
    let output = Command::new("/usr/sbin/ip").args(words.split_whitespace()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A link of a namespace as `ip -d -j` tells it.
pub(crate) fn link_in(namespace: &str, name: &str) -> Option<Value> {
    let links: Vec<Value> = serde_json::from_str(&ip(&format!("-n {namespace} -d -j link"))).unwrap();
    links.into_iter().find(|link| link["ifname"] == name)
}

/// A link of the machine.
pub(crate) fn link(name: &str) -> Option<Value> {
    let links: Vec<Value> = serde_json::from_str(&ip("-d -j link")).unwrap();
    links.into_iter().find(|link| link["ifname"] == name)
}

/// An active-backup bond of these members, up.
pub(crate) fn bond(name: &str, members: &[&str]) {
    ip(&format!("link add {name} type bond mode active-backup miimon 50"));
    for member in members {
        ip(&format!("link set {member} master {name}"));
    }
    ip(&format!("link set {name} up"));
    eventually("the bond has carrier", || carrier(name).then_some(()));
}

pub(crate) fn carrier(name: &str) -> bool {
    fs::read_to_string(format!("/sys/class/net/{name}/carrier")).is_ok_and(|text| text.trim() == "1")
}

/// What the bond sends and receives through.
pub(crate) fn active_member(bond: &str) -> String {
    let path = format!("/sys/class/net/{bond}/bonding/active_slave");
    fs::read_to_string(path).unwrap().trim().to_owned()
}

/// The emulator, which has the other end of every cable. NIC `eth<N>` is its `n<N>`.
#[derive(Debug)]
pub(crate) struct Hardware {
    commands: File,
    answers: BufReader<File>,
}

impl Hardware {
    pub(crate) fn new() -> Self {
        let commands = File::options().read(true).write(true).open(CHANNEL).unwrap();
        let mut answers = BufReader::new(commands.try_clone().unwrap());
        let mut greeting = String::new();
        answers.read_line(&mut greeting).unwrap();
        assert!(greeting.contains("QMP"), "{greeting}");
        let mut hardware = Self { commands, answers };
        hardware.run("qmp_capabilities", &json!({}));
        hardware
    }

    fn run(&mut self, command: &str, arguments: &Value) {
        let request = json!({"execute": command, "arguments": arguments});
        self.commands.write_all(format!("{request}\n").as_bytes()).unwrap();
        loop {
            let answer = self.heard();
            assert_eq!(answer.get("error"), None, "{request}");
            // Events come between.
            if answer.get("return").is_some() {
                return;
            }
        }
    }

    fn heard(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Takes the cable out of a NIC, or puts it back.
    pub(crate) fn cable(&mut self, nic: u8, plugged: bool) {
        self.run("set_link", &json!({"name": format!("n{nic}"), "up": plugged}));
    }

    /// Takes a NIC out of the machine, and waits until kernel and emulator have let it go.
    pub(crate) fn unplug(&mut self, nic: u8) {
        let id = format!("n{nic}");
        self.run("device_del", &json!({"id": id}));
        // The kernel has to agree first.
        loop {
            let event = self.heard();
            if event["event"] == "DEVICE_DELETED" && event["data"]["device"] == id.as_str() {
                break;
            }
        }
        let function = pci_address(nic);
        eventually("the PCI function is gone", || {
            (!Path::new("/sys/bus/pci/devices").join(&function).exists()).then_some(())
        });
    }

    /// Puts a NIC back into the slot where it was, with the MAC address it had.
    pub(crate) fn plug(&mut self, nic: u8) {
        self.plug_as(nic, &mac(nic));
    }

    /// Puts a NIC with another MAC address, which is another NIC, into the slot of one that was unplugged.
    pub(crate) fn plug_as(&mut self, nic: u8, mac: &str) {
        self.run(
            "device_add",
            &json!({
                "driver": "virtio-net-pci", "id": format!("n{nic}"), "netdev": format!("h{nic}"),
                "bus": format!("rp{nic}"), "mac": mac, "romfile": "",
            }),
        );
        let function = pci_address(nic);
        eventually("the PCI function has a driver", || {
            let entries = fs::read_dir(Path::new("/sys/bus/pci/devices").join(&function)).ok()?;
            let mut names = entries.flatten().map(|entry| entry.path().join("net"));
            names.find(|net| net.is_dir() && fs::read_dir(net).is_ok_and(|mut links| links.next().is_some()))
        });
    }
}

/// Every NIC has a root port of its own, so its address follows from its number. The last one is on another bus, near
/// the second memory node.
pub(crate) fn pci_address(nic: u8) -> String {
    if nic == 3 { "0000:41:00.0".to_owned() } else { format!("0000:{:02x}:00.0", nic + 1) }
}

pub(crate) fn mac(nic: u8) -> String {
    format!("52:54:00:00:00:{nic:02x}")
}

//! Machines, as their users write them.

use crate::stage::NAMESPACE;
use std::fmt::Write as _;

/// A machine to be.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    /// The last part of its addresses.
    pub(crate) number: u8,
    /// Networks, one interface each; an address by hand for each but where `mac` is off.
    pub(crate) networks: Vec<&'static str>,
    pub(crate) mac: bool,
    pub(crate) cores: u8,
    /// Addresses that it pings until there is an answer, and reports that.
    pub(crate) asks: Vec<String>,
}

impl Machine {
    /// With one interface, of that network.
    pub(crate) fn on(name: &'static str, number: u8, network: &'static str) -> Self {
        Self { name, number, networks: vec![network], mac: true, cores: 1, asks: Vec::new() }
    }

    /// Its addresses on the first network.
    pub(crate) fn addresses(&self) -> [String; 2] {
        self.addresses_on(0)
    }

    /// Its addresses on the network of that interface.
    pub(crate) fn addresses_on(&self, interface: usize) -> [String; 2] {
        [format!("10.9{interface}.0.{}", self.number), format!("fd9{interface}::{}", self.number)]
    }

    /// The address of an interface.
    pub(crate) fn mac_of(&self, interface: usize) -> String {
        format!("02:23:45:67:{interface:02x}:{:02x}", self.number)
    }

    pub(crate) fn manifest(&self) -> String {
        let (mut interfaces, mut networks, mut arguments) = (String::new(), String::new(), String::new());
        for (index, network) in self.networks.iter().enumerate() {
            let mac =
                if self.mac { format!(", macAddress: \"{}\"", self.mac_of(index)) } else { String::new() };
            let _ = write!(interfaces, "\n          - {{name: net{index}, binding: {{name: macvtap}}{mac}}}");
            let _ = write!(networks, "\n      - {{name: net{index}, multus: {{networkName: {network}}}}}");
        }
        // Also for a NIC that is plugged in later.
        for index in 0..3 {
            let [v4, v6] = self.addresses_on(index);
            let _ = write!(arguments, " guest.ip{index}={v4}/24 guest.ip6_{index}={v6}/64");
        }
        if !self.asks.is_empty() {
            let _ = write!(arguments, " guest.ping={}", self.asks.join(","));
        }
        format!(
            r#"apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  runStrategy: Always
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      evictionStrategy: LiveMigrate
      domain:
        firmware:
          kernelBoot:
            kernelArgs: console=ttyS0 quiet{arguments}
            container: {{image: "{image}", imagePullPolicy: IfNotPresent, kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd.img}}
        cpu: {{cores: {cores}}}
        memory: {{guest: 128Mi}}
        devices:
          autoattachGraphicsDevice: false
          autoattachMemBalloon: false
          logSerialConsole: true
          networkInterfaceMultiqueue: {multiqueue}
          interfaces:{interfaces}
      networks:{networks}
"#,
            name = self.name,
            image = e2e::kubevirt::GUEST,
            cores = self.cores,
            multiqueue = self.cores > 1,
        )
    }
}

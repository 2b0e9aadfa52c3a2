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
}

impl Machine {
    /// With one interface, of that network.
    pub(crate) fn on(name: &'static str, number: u8, network: &'static str) -> Self {
        Self { name, number, networks: vec![network], mac: true, cores: 1 }
    }

    /// Its addresses on the first network.
    pub(crate) fn addresses(&self) -> [String; 2] {
        [format!("10.90.0.{}", self.number), format!("fd90::{}", self.number)]
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
            let number = self.number;
            let _ = write!(
                arguments,
                " guest.ip{index}=10.90.{index}.{number}/24 guest.ip6_{index}=fd9{index}::{number}/64"
            );
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

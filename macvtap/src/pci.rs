//! PCI addresses: what the kubelet and users call a NIC that is given to a pod as a whole.

use std::fmt;
use std::str::FromStr;

/// The highest device number on a bus, and the highest function of a device.
const DEVICE_MAX: u8 = 0x1f;
const FUNCTION_MAX: u8 = 7;

/// Domain, bus, device and function, as the kernel names a PCI function: `0000:00:0a.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is not a PCI address as the kernel writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address; write it as the kernel does, for example 0000:00:0a.0")]
pub struct BadPciAddress(pub String);

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        parse(text).ok_or_else(|| BadPciAddress(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    // Four digits; more where a controller has a domain of its own above 0xffff (Intel VMD), then without leading zeros.
    let padded = domain.len() == 4 || (5..=8).contains(&domain.len()) && !domain.starts_with('0');
    let address = PciAddress {
        domain: hex(domain).filter(|_| padded)?,
        bus: two_digits(bus)?,
        device: two_digits(device).filter(|device| *device <= DEVICE_MAX)?,
        function: hex(function).filter(|_| function.len() == 1)?.try_into().ok()?,
    };
    (address.function <= FUNCTION_MAX).then_some(address)
}

fn two_digits(text: &str) -> Option<u8> {
    hex(text).filter(|_| text.len() == 2)?.try_into().ok()
}

/// Lower-case digits only: one address has one spelling, so that texts can be compared.
fn hex(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if digits { u32::from_str_radix(text, 16).ok() } else { None }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

crate::device_id::serde_as_text!(PciAddress);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_kernels_spelling_is_an_address() {
        for text in ["0000:00:0a.0", "0000:3b:1f.7", "ffff:ff:00.0", "10000:e1:00.0", "ffffffff:00:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "00:0a.0",
            "0000:00:0a",
            "0000:00:0a.",
            "0000:00:0a.8",
            "0000:00:20.0",
            "0000:00:0A.0",
            "0000:0:0a.0",
            "0000:00:a.0",
            "00000:00:0a.0",
            "000:00:0a.0",
            "100000000:00:0a.0",
            "+000:00:0a.0",
            "0000:00:0a.0 ",
            "0000:00:0a.00",
            "0000:00:0a.0.0",
            "virtio1",
            "dataplaneMvp0",
            "../../0000:00:0a.0",
        ] {
            assert_eq!(text.parse::<PciAddress>(), Err(BadPciAddress(text.into())));
        }
    }

    proptest! {
        #[test]
        fn every_accepted_text_is_the_address_it_prints(text in "\\PC{0,20}|[0-9a-f]{4,9}:[0-9a-f]{2}:[0-9a-f]{2}\\.[0-9a-f]") {
            if let Ok(address) = text.parse::<PciAddress>() {
                prop_assert_eq!(address.to_string(), text);
            }
        }
    }
}

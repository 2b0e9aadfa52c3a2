//! Ethernet addresses that a device may have.

use std::fmt;
use std::str::FromStr;

/// A unicast, non-zero 48-bit address. The kernel refuses others for a macvtap with `EADDRNOTAVAIL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr([u8; 6]);

/// Why a text or number is no device's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacAddrError {
    /// Not six two-digit hexadecimal groups.
    #[error("{0:?} is not a MAC address; write it as 02:00:00:00:00:01")]
    Form(String),
    /// A group address, or all zeros.
    #[error("MAC address {0} is a multicast or zero address; a device needs a unicast one")]
    NotUnicast(String),
}

impl MacAddr {
    /// The address in network order.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for MacAddr {
    type Error = MacAddrError;

    fn try_from(octets: [u8; 6]) -> Result<Self, MacAddrError> {
        let candidate = Self(octets);
        if octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(MacAddrError::NotUnicast(candidate.to_string()));
        }
        Ok(candidate)
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let form = || MacAddrError::Form(text.to_owned());
        // Colons or hyphens throughout, as Go's net.ParseMAC (Multus, libcni) takes them.
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut groups = text.split(separator);
        for octet in &mut octets {
            let group = groups.next().filter(|g| g.len() == 2 && g.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = group.and_then(|g| u8::from_str_radix(g, 16).ok()).ok_or_else(form)?;
        }
        if groups.next().is_some() {
            return Err(form());
        }
        Self::try_from(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|octet| write!(f, ":{octet:02x}"))
    }
}

crate::device_id::serde_as_text!(MacAddr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_usual_spellings_are_read() {
        for text in ["02:23:45:67:89:ab", "02-23-45-67-89-AB"] {
            assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), "02:23:45:67:89:ab");
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_before() {
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert!(matches!(text.parse::<MacAddr>(), Err(MacAddrError::NotUnicast(_))), "{text}");
        }
        for text in [
            "",
            "zz",
            "02:23:45:67:89",
            "02:23:45:67:89:01:02",
            "2:23:45:67:89:01",
            "02:23:45:67:89:+1",
            "02-23:45:67:89:01",
        ] {
            assert!(matches!(text.parse::<MacAddr>(), Err(MacAddrError::Form(_))), "{text}");
        }
    }
}

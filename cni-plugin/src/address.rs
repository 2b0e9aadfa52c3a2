//! A MAC address for a pod that asks for none: always the same one, so that a sandbox that is made again keeps it.

use macvtap::mac::MacAddr;

/// How many addresses are tried when one is taken.
pub const CANDIDATES: u8 = 4;

/// The address number `candidate` of a pod's interface: a locally administered unicast address from a hash of pod UID
/// and interface name. Two pods of one lower link get the same one with a chance of one in 2^46; then the kernel refuses
/// the second (`EADDRINUSE`) and the next candidate is used, which the pod gets again as long as its twin lives.
/// Without a UID there is none: names come back in other clusters on the same wire.
pub fn derived(pod_uid: &str, ifname: &str, candidate: u8) -> Option<MacAddr> {
    if pod_uid.is_empty() {
        return None;
    }
    let hash = hash(pod_uid.bytes().chain([0]).chain(ifname.bytes()).chain([0, candidate]));
    let folded = hash ^ (hash >> 48);
    let [_, _, mut octets @ ..] = folded.to_be_bytes();
    octets[0] = (octets[0] & 0xfc) | 0x02;
    octets.try_into().ok()
}

/// The address of a link whose guest is elsewhere: nobody's but this sandbox's interface's.
pub fn away(container: &str, ifname: &str) -> Option<MacAddr> {
    derived(container, ifname, u8::MAX)
}

/// FNV-1a, 64 bits: stable over versions of this program and of its standard library, unlike the latter's hashes.
pub(crate) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_pod_keeps_its_address_and_others_have_another() {
        let uid = "0b0e5f4a-93c5-4c6d-8d4e-5f1f9d1c7a10";
        let mac = derived(uid, "net1", 0).unwrap();
        assert_eq!(mac, derived(uid, "net1", 0).unwrap());
        assert_eq!(mac.octets()[0] & 3, 2, "locally administered, unicast");
        assert_eq!(derived("", "net1", 0), None);
        let all = (0..10_000).flat_map(|n| [(n, 0), (n, 1)]);
        let macs: HashSet<_> = all.map(|(n, c)| derived(&format!("{uid}{n}"), "net1", c).unwrap()).collect();
        assert_eq!(macs.len(), 20_000);
        assert_ne!(derived(uid, "net1", 0), derived(uid, "net2", 0));
    }
}

//! Inputs that grow from valid ones.

use super::Target;
use serde_json::{Map, Value, json};

/// Numbers that depend on nothing but the seed (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Words with a meaning to one of the readers, and some that only look like it.
const WORDS: [&str; 68] = [
    "",
    "1.0.0",
    "1.1.0",
    "0.3.1",
    "9.9.9",
    "macvtap",
    "kube-ovn",
    "dhcp",
    "static",
    "../sh",
    "multus",
    "p4p1.default",
    "a.ovn",
    "/run/openvswitch/a.sock",
    "/run/openvswitch/../a",
    "dataplaneMvp0",
    "dataplaneMvp999999",
    "Mvp",
    "02:00:00:00:00:01",
    "ff:ff:ff:ff:ff:ff",
    "02-00-00-00-00-01",
    "10.0.0.2/24",
    "10.0.0.0/33",
    "fd00::2/64",
    "::/0",
    "0.0.0.0/0",
    "10.0.0.1",
    "fd00::1",
    "::ffff:10.0.0.1",
    "bridge",
    "passthru",
    "Auto",
    "Never",
    "net1",
    "\u{0}",
    "\u{202e}",
    "\u{1f4a9}",
    "null",
    "MAC=",
    "IgnoreUnknown=1",
    "246:5",
    "Attached",
    "Pod",
    "Macvtap",
    "HostDevice",
    "ehost-device",
    "0000:00:0a.0",
    "10000:e1:1f.7",
    "0000:00:0A.8",
    "Physical",
    "HostDevice",
    "Passthru",
    "Staged",
    "DryRun",
    "Draining",
    "Link",
    "Shared",
    "10%",
    "-1",
    "dp*",
    "[a-",
    "**",
    "0x15b3",
    "virtio1",
    "{link}",
    "kubernetes.io/hostname",
    "2026-02-30T25:61:61Z",
    "macvtap.network.kubevirt.io/dataplane",
];

fn odd_value(numbers: &mut Numbers) -> Value {
    match numbers.below(12) {
        0 => Value::Null,
        1 => Value::Bool(numbers.below(2) == 0),
        2 => json!(numbers.next()),
        3 => json!(i64::MIN),
        4 => json!(*numbers.pick(&[0_i64, 1, -1, 67, 68, 65_535, 65_536, 1 << 24, (1 << 31) - 1, 1 << 32])),
        5 => json!(1.5e300),
        6 => json!([]),
        7 => json!({}),
        8 => json!([numbers.pick(&WORDS)]),
        9 => json!({*numbers.pick(&WORDS): numbers.pick(&WORDS)}),
        10 if numbers.below(100) == 0 => json!("x".repeat(numbers.below(70_000))),
        10 => json!("x".repeat(numbers.below(300))),
        _ => json!(numbers.pick(&WORDS)),
    }
}

/// Changes one value somewhere below, the deeper the likelier.
pub(crate) fn change(value: &mut Value, numbers: &mut Numbers) {
    match value {
        Value::Object(map) if !map.is_empty() && numbers.below(8) > 0 => change_object(map, numbers),
        Value::Array(list) if !list.is_empty() && numbers.below(8) > 0 => {
            let at = numbers.below(list.len());
            match numbers.below(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => change(&mut list[at], numbers),
            }
        }
        other => *other = odd_value(numbers),
    }
}

fn change_object(map: &mut Map<String, Value>, numbers: &mut Numbers) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let key = numbers.pick(&keys).clone();
    match numbers.below(10) {
        0 => drop(map.remove(&key)),
        1 => drop(map.insert((*numbers.pick(&WORDS)).to_owned(), odd_value(numbers))),
        2 => {
            let from = map[numbers.pick(&keys)].clone();
            map.insert(key, from);
        }
        3 => {
            let inner = map[&key].clone();
            map.insert(key, json!([inner]));
        }
        _ => change(map.get_mut(&key).unwrap(), numbers),
    }
}

fn damage(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    if bytes.is_empty() {
        return;
    }
    let at = numbers.below(bytes.len());
    match numbers.below(6) {
        0 => bytes.truncate(at),
        1 => bytes[at] = numbers.next().to_le_bytes()[0],
        2 => bytes[at] ^= 1 << numbers.below(8),
        3 => drop(bytes.splice(at..at, numbers.pick(&WORDS).bytes())),
        4 => drop(bytes.splice(at..at, vec![*numbers.pick(b"[{\"\\\xff0"); numbers.below(300)])),
        _ => {
            let end = at + numbers.below(bytes.len() - at);
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

pub(super) fn input(target: &Target, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = numbers.pick(&target.seeds).clone();
    if let Ok(mut json) = serde_json::from_slice::<Value>(&bytes) {
        for _ in 0..numbers.below(4) {
            change(&mut json, numbers);
        }
        bytes = serde_json::to_vec(&json).unwrap();
    }
    // Most stay JSON, so that the judges behind the reader get something to do.
    if numbers.below(3) == 0 {
        for _ in 0..=numbers.below(4) {
            damage(&mut bytes, numbers);
        }
    }
    bytes
}

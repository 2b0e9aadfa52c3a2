//! What this kernel says of each kind of link. The agent's own tests read it on machines whose kernel lacks them.

use crate::support::in_guest;
use crate::support::machine::{bond, ip};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};

/// One line for each link: its name, and the payload of `RTM_NEWLINK` in hexadecimal digits.
const RECORDED: &str = include_str!("../../../../node-agent/tests/data/links-6.1.txt");

/// `struct nlmsghdr`, `struct ifinfomsg`.
const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;

const RTM_NEWLINK: u16 = 16;
const NLMSG_DONE: u16 = 3;
const IFLA_IFNAME: u16 = 3;

/// `RTM_GETLINK` as a dump, without statistics (`IFLA_EXT_MASK`, `RTEXT_FILTER_SKIP_STATS`).
const REQUEST: [u8; 40] = [
    40, 0, 0, 0, 18, 0, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ifinfomsg
    8, 0, 29, 0, 8, 0, 0, 0,
];

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// The payloads of all links.
fn dump() -> Vec<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    socket.send(&REQUEST, 0).unwrap();
    let mut links = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().unwrap();
        let mut rest = &bytes[..];
        while rest.len() >= MESSAGE_HEADER {
            let length = usize::from(word(rest, 0));
            match word(rest, 4) {
                RTM_NEWLINK => links.push(rest[MESSAGE_HEADER..length].to_vec()),
                NLMSG_DONE => return links,
                other => panic!("message of type {other}"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// Attributes of one level, by number.
fn attributes(link: &[u8]) -> BTreeMap<u16, &[u8]> {
    let (mut rest, mut found) = (&link[LINK_HEADER..], BTreeMap::new());
    while rest.len() >= 4 {
        let length = usize::from(word(rest, 0));
        found.insert(word(rest, 2), &rest[4..length]);
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    found
}

fn name(link: &[u8]) -> String {
    String::from_utf8(attributes(link)[&IFLA_IFNAME].to_vec()).unwrap().trim_end_matches('\0').to_owned()
}

fn from_hex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn links_are_described_by_the_attributes_that_were_recorded() {
    if !in_guest() {
        return;
    }
    ip("link set eth3 up");
    ip("link property add dev eth3 altname enp65s0");
    bond("bond0", &["eth0", "eth1"]);
    ip("link add link bond0 name bond0.100 type vlan id 100");
    ip("link add br0 type bridge");
    ip("link set eth2 master br0");
    ip("link add team0 type team");
    ip("link add dum0 type dummy");
    ip("link set dum0 master team0");
    ip("link add dum1 type dummy");
    ip("link add link dum1 name ipvl0 type ipvlan mode l2");
    ip("link add vrf0 type vrf table 7");
    ip("link add dum2 type dummy");
    ip("link set dum2 master vrf0");
    ip("link add dum3 type dummy");
    ip("link add link dum3 name pass0 type macvtap mode passthru");
    ip("link add link dum2 name tap0 type macvtap mode bridge");
    ip("link add veth0 type veth peer name veth1");
    let links = dump();
    // The harness has begun a line.
    println!();
    for link in &links {
        print!("RECORD {} ", name(link));
        for byte in link {
            print!("{byte:02x}");
        }
        println!();
    }
    let numbers = |link: &[u8]| attributes(link).into_keys().collect::<BTreeSet<u16>>();
    let now: BTreeMap<String, BTreeSet<u16>> = links.iter().map(|l| (name(l), numbers(l))).collect();
    let recorded = RECORDED.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, digits) = line.split_once(' ').unwrap();
        (name.to_owned(), numbers(&from_hex(digits)))
    });
    assert_eq!(
        recorded.collect::<BTreeMap<_, _>>(),
        now,
        "record them again: node-agent/tests/data/README.md"
    );
}

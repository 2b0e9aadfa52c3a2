//! What a network configuration asks for.

use super::kube_ovn::KubeOvn;
use crate::protocol::result::{CniResult, Dns};
use macvtap::mac::MacAddr;
use macvtap::mode::Mode;

/// What the configuration says about a device, judged.
#[derive(Clone, Debug)]
pub struct Network {
    /// The device; absent when nobody filled it in.
    pub device_id: Option<String>,
    /// The address asked for.
    pub mac: Option<MacAddr>,
    /// The MTU asked for.
    pub mtu: Option<u32>,
    /// The mode the author expects.
    pub mode: Option<Mode>,
    /// Whether the link takes every frame; absent: as the pool says.
    pub promiscuous: Option<bool>,
    /// User of the device node; absent: as the pool says.
    pub owner: Option<u32>,
    /// Group of the device node; absent: as the pool says.
    pub group: Option<u32>,
    /// Whether new addresses are announced.
    pub announce: Announce,
    /// Whether new IPv6 addresses are checked for duplicates.
    pub dad: Dad,
    /// Whether the link's address follows a machine that migrates.
    pub migration: Migration,
    /// Where addresses come from.
    pub ipam: Option<Ipam>,
    /// Name resolution, if the IPAM plugin says nothing about it.
    pub dns: Dns,
    /// What the plugins before this one did.
    pub prev_result: Option<CniResult>,
}

/// Whether the kernel asks the wire if another host has a new IPv6 address (duplicate address detection, RFC 4862).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dad {
    /// It asks, and an address that is taken fails the ADD.
    #[default]
    Auto,
    /// It does not: a host that still has the address would object.
    Never,
}

/// Whether new addresses are announced on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announce {
    /// They are.
    #[default]
    Auto,
    /// They are not: a migrating virtual machine must not lose its address early.
    Never,
}

/// What becomes of the link's address when its guest migrates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Migration {
    /// The link has it from the beginning to the end.
    #[default]
    Fixed,
    /// The link has it while the guest is behind it.
    Follow,
}

/// An IPAM plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    /// The plugin's file name.
    pub plugin: String,
    /// What kube-ovn's plugin needs; none for any other.
    pub kube_ovn: Option<KubeOvn>,
}

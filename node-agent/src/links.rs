//! The links of the node: one link ([`link`]), all of them and their relations ([`inventory`]), where they come from
//! ([`netlink`], [`sysfs`]), and whether they work ([`health`]). Knows nothing of pools and devices.

pub mod health;
pub mod inventory;
pub mod link;
pub mod netlink;
pub mod notification;
mod reader;
pub mod sysfs;

//! What the node agent and the CNI plugin share.
//!
//! Both programs act on the same devices without talking to each other: the agent writes the device table, the
//! plugin reads it; the program that makes a link leaves an attachment record. This crate holds these two files' formats, the
//! rules for names and numbers in them, and the only implementation of making and removing a macvtap.

pub mod adopt;
pub mod attach;
pub mod boot;
pub mod claim;
pub mod default_routes;
pub mod detach;
pub mod device_id;
pub mod file;
pub mod fit;
pub mod give_back;
pub mod host_device;
pub mod host_link;
pub mod host_ties;
pub mod kernel;
pub mod kubelet_id;
pub mod link;
pub mod links;
pub mod lock;
pub mod mac;
pub mod mode;
pub mod netlink;
pub mod netns;
pub mod park;
pub mod paths;
pub mod pci;
pub mod record;
pub mod records;
pub mod support;
pub mod switch;
pub mod table;
pub mod table_file;
pub mod tap;
pub mod tap_pods;
pub mod uevent;

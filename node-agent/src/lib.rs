//! The node agent: finds the links of a node, offers macvtaps on them to the kubelet, and keeps the node clean.
//!
//! What decides is pure and knows neither sockets nor files: [`link`], [`inventory`], [`pool`], [`selection`],
//! [`devices`], [`health`]. What acts is around it.

pub mod devices;
pub mod health;
pub mod inventory;
pub mod link;
pub mod pool;
pub mod selection;
pub mod standalone;

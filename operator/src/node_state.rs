//! What each node should offer: from pools and nodes to node states.

pub mod apply;
pub mod render;

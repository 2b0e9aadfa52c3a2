//! What acts: one controller for each kind of object.

mod networks;
mod node_states;
mod pools;

pub use networks::{NetworkAction, NetworkSnapshot, Networks};
pub use node_states::{NodeAction, NodeSnapshot, NodeStates};
pub use pools::{Drain, PoolAction, PoolSnapshot, Pools};

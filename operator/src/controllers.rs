//! What acts: one reconcile function for each kind of object. Each reads the caches, has a pure function decide, and
//! writes what that says.

pub mod networks;
pub mod node_states;
pub mod pools;

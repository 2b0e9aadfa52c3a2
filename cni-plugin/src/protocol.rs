//! The CNI specification's side: what a runtime hands over and what it gets back. Knows nothing of macvtap.

pub mod environment;
pub mod error;
pub mod json;
pub mod result;
pub mod version;

//! What pods hold: attachment records and the links behind them.
//!
//! [`collector`] decides which of them is without a pod, [`cleanup`] removes it, [`taps`] makes the links of pods
//! without a network. Knows the kubelet's list ([`crate::pods`]), not the kubelet.

pub mod cleanup;
pub mod collector;
mod lost;
pub mod taps;

pub use lost::{Lost, LostLink};

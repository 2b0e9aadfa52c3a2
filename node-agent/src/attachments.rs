//! What pods hold: attachment records and the links behind them.
//!
//! [`collector`] decides which of them is an [`orphan`], by what the kubelet lists and what became of the [`sandbox`];
//! [`cleanup`] removes orphans, [`taps`] makes the links of pods without a network. Knows the kubelet's list
//! ([`crate::pods`]), not the kubelet.

pub mod cleanup;
pub mod collector;
mod lost;
pub mod orphan;
pub mod sandbox;
pub mod taps;

pub use lost::{Lost, LostLink};

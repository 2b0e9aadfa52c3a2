//! What pods hold: attachment records and the links behind them.
//!
//! [`collector`] decides which of them is an [`orphan`], by [`witness`]es: what the kubelet lists and remembers, and what became
//! of the [`sandbox`];
//! [`cleanup`] removes orphans, [`taps`] makes the links of pods without a network. Knows the kubelet's list
//! ([`crate::pods`]), not the kubelet.

pub mod cleanup;
pub mod collector;
mod lost;
pub mod orphan;
pub mod sandbox;
pub mod taps;
mod unlisted;
pub mod witness;

pub use lost::{Lost, LostLink};
pub(crate) use unlisted::Unlisted;

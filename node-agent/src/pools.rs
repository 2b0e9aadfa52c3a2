//! Pools as the operator or a configuration file describes them ([`pool`]), and which links each of them gets
//! ([`selection`]). Pure.

pub mod pool;
pub mod selection;

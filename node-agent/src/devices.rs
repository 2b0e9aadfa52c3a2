//! Devices: which link has which slots and indexes ([`assignment`]), what the kubelet is offered of them ([`offer`]), and
//! the step that joins links, pools and use ([`engine`]). Knows neither sockets nor the kubelet.

pub mod assignment;
pub mod engine;
pub mod nics;
pub mod offer;

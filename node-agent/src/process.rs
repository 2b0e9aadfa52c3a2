//! The agent as a process: parent and worker ([`supervisor`]), the node's lock, the installed CNI plugin, log, metrics,
//! probes and the sockets they are asked on. Knows nothing of links, devices and pods.

pub mod install;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod probe;
pub mod sockets;
pub mod supervisor;

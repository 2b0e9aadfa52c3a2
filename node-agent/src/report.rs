//! What the agent reports: the status of its node state ([`nodestate`]), metrics and readiness over HTTP ([`admin`]), and
//! the answer of the command `links` ([`link_list`]).

pub mod admin;
pub mod link_list;
pub mod nodestate;

//! Every flag and environment variable.

use clap::{Parser, ValueEnum};
use std::net::SocketAddr;

/// Renders resource pools into node states and networks, and reports what became of them.
#[derive(Clone, Debug, Parser)]
#[command(name = "macvtap-operator", version)]
pub struct Args {
    /// Address of the probes /livez and /readyz.
    #[arg(long, env = "MACVTAP_OPERATOR_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// How logs are written.
    #[arg(long, env = "MACVTAP_OPERATOR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: a level, or a list such as `info,macvtap_operator=debug`.
    #[arg(long, env = "MACVTAP_OPERATOR_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For log collectors, one object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }
}

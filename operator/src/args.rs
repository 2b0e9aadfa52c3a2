//! Every flag and environment variable.

#![expect(clippy::doc_markdown, reason = "doc comments are the help, which is plain text")]

use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;

/// Renders resource pools into node states and networks, and reports what became of them.
#[derive(Clone, Debug, Parser)]
#[command(name = "macvtap-operator", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,

    /// How logs are written.
    #[arg(long, env = "MACVTAP_OPERATOR_LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: a level, or a list such as `info,macvtap_operator=debug`.
    #[arg(long, env = "MACVTAP_OPERATOR_LOG_LEVEL", global = true, default_value = "info")]
    pub log_level: String,
}

/// What the operator does in a cluster.
#[derive(Clone, Debug, Group)]
pub struct Serve {
    /// Address of the probes /livez and /readyz, and of /metrics.
    #[arg(long, env = "MACVTAP_OPERATOR_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Namespace of the lease. Absent: the one of the service account or kubeconfig.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: Option<String>,

    /// Namespace of the agents' pods. Absent: that of the lease.
    #[arg(long)]
    pub agent_namespace: Option<String>,

    /// Name of the lease that decides which operator writes.
    #[arg(long, default_value = "macvtap-operator")]
    pub lease: String,

    /// How this operator calls itself in the lease; something random is added.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,

    /// Label selector of the agents' pods.
    #[arg(long, default_value = "app.kubernetes.io/name=macvtap-node-agent")]
    pub agent_selector: String,

    /// How many nodes must have the same pools for these to be written once, as a MacvtapNodeConfig that the nodes' states
    /// name. 0: never.
    #[arg(long, env = "MACVTAP_OPERATOR_SHARE_CONFIGS_FROM", value_name = "NODES", default_value_t = 100)]
    pub share_configs_from: usize,
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Print the pools that do what a ConfigMap of macvtap-cni's device plugin does.
    Migrate(Migrate),
    /// Add the devices that pods' networks need to the pods' limits, as a mutating admission webhook.
    Webhook(Webhook),
}

/// How the webhook serves.
#[derive(Clone, Debug, Group)]
pub struct Webhook {
    /// Address of the webhook and of the probes /livez and /readyz, all over HTTPS.
    #[arg(long, default_value = "127.0.0.1:8443")]
    pub listen: SocketAddr,

    /// Namespace of the Service and of the Secret. Absent: the one of the service account or kubeconfig.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: Option<String>,

    /// Service by which the API server connects: the certificate is for its name.
    #[arg(long, default_value = "macvtap-webhook")]
    pub service: String,

    /// Further names and addresses in the certificate.
    #[arg(long = "dns-name", value_name = "NAME")]
    pub dns_names: Vec<String>,

    /// Existing Secret that holds the certificate; it is written, and renewed a month before its end.
    #[arg(long, default_value = "macvtap-webhook")]
    pub secret: String,

    /// MutatingWebhookConfiguration that the certificate is written into.
    #[arg(long, default_value = "macvtap-webhook")]
    pub configuration: String,
}

/// Where the configuration is.
#[derive(Clone, Debug, Group)]
pub struct Migrate {
    /// Files with a ConfigMap, a list of ConfigMaps, or the JSON of DP_MACVTAP_CONF alone; `-` is the standard input.
    /// Without files the ConfigMap is read from the cluster.
    pub files: Vec<String>,

    /// Namespace of the ConfigMap in the cluster.
    #[arg(long, default_value = "default", conflicts_with = "files")]
    pub namespace: String,

    /// Names of ConfigMaps in the cluster; several where nodes have their own.
    #[arg(long = "name", default_value = "macvtap-deviceplugin-config", conflicts_with = "files")]
    pub names: Vec<String>,

    /// Nodes of a ConfigMap, as NAME=KEY=VALUE: its name and a label that its nodes have. Where nodes have their own
    /// ConfigMaps, each needs one.
    #[arg(long = "nodes", value_name = "NAME=KEY=VALUE")]
    pub nodes: Vec<String>,
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

    #[test]
    fn without_a_word_it_serves() {
        let args = Args::try_parse_from(["macvtap-operator", "--listen", "127.0.0.1:1"]).unwrap();
        assert!(args.command.is_none());
        let args = Args::try_parse_from(["macvtap-operator", "migrate", "-"]).unwrap();
        assert!(matches!(args.command, Some(Command::Migrate(migrate)) if migrate.files == ["-"]));
        let args = Args::try_parse_from(["macvtap-operator", "webhook", "--log-format=json"]).unwrap();
        assert_eq!(args.log_format, LogFormat::Json);
        assert!(matches!(args.command, Some(Command::Webhook(_))));
    }
}

//! Every command and flag.

#![expect(clippy::doc_markdown, reason = "doc comments are the help, which is plain text")]

use crate::output::Format;
use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use macvtap_operator::args::Migrate;
use std::path::PathBuf;
use std::time::Duration;

/// Checks, explains and plans macvtap networking of a cluster, with your own rights.
#[derive(Debug, Parser)]
#[command(name = "kubectl-macvtap", bin_name = "kubectl macvtap", version)]
pub(crate) struct Args {
    /// Which cluster.
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster.
#[derive(Clone, Debug, Group)]
pub(crate) struct Connection {
    /// Kubeconfig file. Absent: that of KUBECONFIG or ~/.kube/config, in a pod its service account.
    #[arg(long, global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig. Absent: the current one.
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Try everything that macvtap networking stands on, and report what is wrong and how to mend it. Exit code 1 if a check failed.
    Check(Check),
    /// Show pools, nodes and links with their reasons.
    Status(Shown),
    /// Explain why a pod, pool, node or link has its devices or lacks them. Exit code 1 if something is wrong.
    Explain(Explain),
    /// Show which nodes and links a pool would take, and which pools lose some, before it is applied.
    Plan(Plan),
    /// Let pods on the links of a pool reach each other: IPv4, IPv6, multicast, full MTU, every pair of nodes. Removes what it made.
    Connectivity(Connectivity),
    /// Collect what a bug report needs in one archive, without secrets.
    Sysdump(Sysdump),
    /// Remove resources with the value 0 from Nodes that the kubelet keeps of former pools.
    Prune(Prune),
    /// Print the pools that replace a ConfigMap of macvtap-cni's device plugin.
    Migrate(Migrate),
    /// Print the completion script of a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

/// How a report is printed.
#[derive(Clone, Debug, Group)]
pub(crate) struct Shown {
    /// Form of the report.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// What to check.
#[derive(Debug, Group)]
pub(crate) struct Check {
    /// Check the cluster before an installation.
    #[arg(long)]
    pub(crate) pre: bool,

    /// Namespace of the installation.
    #[arg(short, long, default_value = "macvtap-system")]
    pub(crate) namespace: String,

    /// Repeat the checks until none fails, at most so long: 90s, 5m.
    #[arg(long, value_parser = duration)]
    pub(crate) wait: Option<Duration>,

    /// How the report is printed.
    #[command(flatten)]
    pub(crate) shown: Shown,
}

/// What to explain.
#[derive(Debug, Group)]
pub(crate) struct Explain {
    /// The kind of object.
    #[arg(value_enum)]
    pub(crate) kind: Subject,

    /// Its name.
    pub(crate) name: String,

    /// Namespace of the pod. Absent: that of the context.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,

    /// Node of the link. Absent: every node that has a link of the name.
    #[arg(long)]
    pub(crate) node: Option<String>,

    /// How the report is printed.
    #[command(flatten)]
    pub(crate) shown: Shown,
}

/// What can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// A pod.
    Pod,
    /// A MacvtapResourcePool.
    Pool,
    /// A node.
    Node,
    /// A link of a node.
    Link,
}

/// What to plan.
#[derive(Debug, Group)]
pub(crate) struct Plan {
    /// File with the pools as they would be applied; `-` is the standard input.
    #[arg(short, long)]
    pub(crate) filename: PathBuf,

    /// How the report is printed.
    #[command(flatten)]
    pub(crate) shown: Shown,
}

/// What to connect.
#[derive(Debug, Group)]
pub(crate) struct Connectivity {
    /// The pool. Absent: the only one of type Macvtap.
    #[arg(long)]
    pub(crate) pool: Option<String>,

    /// Namespace of the pods. Absent: that of the context.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,

    /// Image with the program tapguest (images/tapguest). Absent: tapguest beside the agent's image, with its tag.
    #[arg(long)]
    pub(crate) image: Option<String>,

    /// Nodes to take at most, each with two pods.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) nodes: u8,

    /// How long to wait for the pods.
    #[arg(long, default_value = "2m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// What to collect.
#[derive(Debug, Group)]
pub(crate) struct Sysdump {
    /// The archive. Absent: macvtap-sysdump-TIME.tar.gz in this directory.
    #[arg(short = 'f', long)]
    pub(crate) file: Option<PathBuf>,

    /// Lines of each log.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) log_lines: i64,
}

/// What to remove.
#[derive(Debug, Group)]
pub(crate) struct Prune {
    /// Show what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Reads 90s, 5m, 1h or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.strip_prefix(digits).unwrap_or_default() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write 90s, 5m or 1h".to_owned()),
    };
    let number: u32 = digits.parse().map_err(|_| "write 90s, 5m or 1h".to_owned())?;
    Ok(Duration::from_secs(u64::from(number) * factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_are_written_as_in_kubectl() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("soon").is_err() && duration("m").is_err());
    }

    #[test]
    fn the_context_may_stand_after_the_command() {
        let args =
            Args::try_parse_from(["kubectl-macvtap", "migrate", "--namespace", "old", "--context", "c"]);
        let args = args.unwrap();
        assert_eq!(args.connection.context.as_deref(), Some("c"));
        assert!(matches!(args.command, Command::Migrate(migrate) if migrate.namespace == "old"));
    }
}

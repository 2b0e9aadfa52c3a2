//! Every flag and environment variable.

use crate::config::standalone;
use crate::process::log::LogFormat;
use crate::process::probe::Question;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Finds the links of a node, offers macvtaps on them to the kubelet, and keeps the node clean.
///
/// With `DP_MACVTAP_CONF` or --config it serves what these say; otherwise what the operator wrote for --node-name.
#[derive(Debug, Parser)]
#[command(name = "macvtap-node-agent", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub run: RunArguments,
}

/// What the program can do beside serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask the agent of this container whether it lives, or is ready.
    Probe {
        /// What to ask.
        #[arg(value_enum, default_value_t)]
        question: Question,
        /// Directory of the agent's socket.
        #[arg(long, value_name = "DIR", default_value = RUN)]
        run_dir: PathBuf,
    },
    /// Print every link of this machine, whether a macvtap can be made on it, and if not, why.
    Links {
        /// Text for people, JSON for programs.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Put the CNI plugin where the runtime looks for it, unless a newer one is there.
    InstallCni {
        /// The runtime's CNI binary directory.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        cni_bin_dir: PathBuf,
        /// The plugin to install.
        #[arg(long, value_name = "FILE", default_value = PLUGIN)]
        cni_plugin: PathBuf,
        /// Install it under the name ehost-device too, for networks written for virt-network-device-plugin.
        #[arg(long)]
        ehost_device: bool,
    },
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Text,
    /// One array of objects.
    Json,
}

const RUN: &str = "/run/macvtap";

const PLUGIN: &str = "/opt/macvtap/bin/macvtap";

/// How to serve.
#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// Resources as macvtap-cni's JSON; `[]` for every NIC and bond. Set: no API server is needed.
    #[arg(long = "conf", env = standalone::VARIABLE, hide = true, allow_hyphen_values = true)]
    pub configuration: Option<String>,
    /// File with the same JSON, read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this node in the cluster.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Name of the pod this agent runs in: a kubelet that does not list it does not list everything.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
    /// Namespace of that pod.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub pod_namespace: Option<String>,
    /// What survives a reboot: device table, last configuration, lock.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/macvtap")]
    pub state_dir: PathBuf,
    /// What ends with the boot: attachment records, device nodes, sockets.
    #[arg(long, value_name = "DIR", default_value = RUN)]
    pub run_dir: PathBuf,
    /// The kubelet's device plugin directory.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/device-plugins")]
    pub device_plugin_dir: PathBuf,
    /// The kubelet's pod resources socket.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/kubelet/pod-resources/kubelet.sock")]
    pub pod_resources_socket: PathBuf,
    /// The runtime's CNI binary directory: the plugin is installed there, and again when it is missing.
    #[arg(long, value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Where the parent of --cni-bin-dir is mounted below, under its own path, so that an exchange of that directory is seen.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub node_root: Option<PathBuf>,
    /// The plugin to install.
    #[arg(long, value_name = "FILE", default_value = PLUGIN)]
    pub cni_plugin: PathBuf,
    /// Install it under the name ehost-device too, for networks written for virt-network-device-plugin.
    #[arg(long)]
    pub ehost_device: bool,
    /// Where metrics are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9469")]
    pub listen: SocketAddr,
    /// How log lines are written.
    #[arg(long, value_enum, default_value_t, env = "LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, also per module.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "LOG_LEVEL")]
    pub log_level: String,
}

/// Flags of macvtap-cni's logger that take a value, in the next argument if not after `=`.
const GLOG_WITH_VALUE: [&str; 6] =
    ["v", "stderrthreshold", "vmodule", "log_dir", "log_backtrace_at", "log_link"];

/// Those that do not.
const GLOG_SWITCHES: [&str; 2] = ["logtostderr", "alsologtostderr"];

/// glog's verbosity from which on everything was printed.
const GLOG_DEBUG: u32 = 5;

/// Takes out what manifests of macvtap-cni and its relatives pass to their logger (`-v 3 -logtostderr`), and puts our
/// own log level in its place.
pub fn without_glog(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut verbosity = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some((name, value)) = argument.to_str().and_then(glog_flag) else {
            kept.push(argument);
            continue;
        };
        let value = if GLOG_SWITCHES.contains(&name) {
            None
        } else {
            value.map(str::to_owned).or_else(|| arguments.next()?.into_string().ok())
        };
        if name == "v" {
            verbosity = value.and_then(|value| value.parse::<u32>().ok());
        }
    }
    if verbosity.is_some_and(|level| level >= GLOG_DEBUG) {
        kept.push("--log-level=debug".into());
    }
    kept
}

fn glog_flag(argument: &str) -> Option<(&str, Option<&str>)> {
    let flag = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (flag, None),
    };
    let known = GLOG_WITH_VALUE.contains(&name) || GLOG_SWITCHES.contains(&name);
    known.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn filtered(text: &str) -> String {
        let kept = without_glog(text.split_whitespace().map(OsString::from));
        kept.join(&OsString::from(" ")).into_string().unwrap()
    }

    #[test]
    fn the_flags_of_earlier_manifests_are_taken_out() {
        for (given, kept) in [
            ("-v 3 -logtostderr", ""),
            ("--logtostderr -v 10", "--log-level=debug"),
            ("-v=3 --state-dir /x", "--state-dir /x"),
            ("--v=5 --logtostderr=true --stderrthreshold INFO links", "links --log-level=debug"),
            ("-v", ""),
            ("--verbose", "--verbose"),
        ] {
            assert_eq!(filtered(given), kept, "{given}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["a", "--config", "/x"]).unwrap().run.config.is_some());
        assert!(Arguments::try_parse_from(["a", "--unknown"]).is_err());
    }
}

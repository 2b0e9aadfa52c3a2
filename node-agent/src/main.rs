//! Entry point: a parent process that does nothing but watch over its worker, the worker, and commands for people.

use clap::Parser;
use macvtap_node_agent::config::args::{Arguments, Command, Output, without_glog};
use macvtap_node_agent::error_chain;
use macvtap_node_agent::process::install::{self, PluginName};
use macvtap_node_agent::process::probe;
use macvtap_node_agent::process::supervisor::{self, EXIT_CONFIGURATION, PARENT, Worker};
use macvtap_node_agent::report::link_list;
use macvtap_node_agent::worker::{self, WorkerError};
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Whatever the caller has set: modes are as the code that makes a file asks for.
    macvtap::file::set_mask();
    let mut arguments = without_glog(std::env::args_os());
    let ended = match std::env::var(PARENT).ok().and_then(|parent| parent.parse().ok()) {
        Some(parent) => return work(parent, arguments),
        None if is_command(arguments.get(1)) => command(arguments),
        None => {
            // Nothing is parsed here: the worker says what is wrong, and the parent stays as small as it can be.
            let own = arguments.split_off(1.min(arguments.len()));
            supervisor::run(&own).map_err(Into::into)
        }
    };
    ended.unwrap_or_else(|error| {
        complain(error.as_ref());
        ExitCode::FAILURE
    })
}

fn is_command(argument: Option<&OsString>) -> bool {
    let argument = argument.and_then(|argument| argument.to_str());
    matches!(
        argument,
        Some("probe" | "links" | "install-cni" | "help" | "-h" | "--help" | "-V" | "--version")
    )
}

fn work(parent: i32, arguments: Vec<OsString>) -> ExitCode {
    let Arguments { command: _, run } = Arguments::parse_from(arguments);
    if let Err(error) = supervisor::die_with_parent(parent) {
        complain(&error);
        return ExitCode::FAILURE;
    }
    match worker::run(run, Worker::this()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            exit_code(&error)
        }
    }
}

fn exit_code(error: &WorkerError) -> ExitCode {
    if error.is_configuration() { ExitCode::from(EXIT_CONFIGURATION) } else { ExitCode::FAILURE }
}

fn command(arguments: Vec<OsString>) -> Result<ExitCode, Box<dyn Error>> {
    match Arguments::parse_from(arguments).command {
        Some(Command::Probe { question, run_dir }) => println(&probe::ask(&run_dir, question)?)?,
        Some(Command::Links { output: Output::Text }) => println(&link_list::text(&link_list::links()?))?,
        Some(Command::Links { output: Output::Json }) => println(&link_list::json(&link_list::links()?)?)?,
        Some(Command::InstallCni { cni_bin_dir, cni_plugin, ehost_device }) => {
            for name in PluginName::wanted(ehost_device) {
                let version = env!("CARGO_PKG_VERSION");
                let installed = install::install(&cni_plugin, &cni_bin_dir, *name, version)?;
                println(&format!("{}: {installed:?}", cni_bin_dir.join(name.as_str()).display()))?;
            }
        }
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "there may be no log, and this line is why the program ends")]
fn complain(error: &dyn Error) {
    eprintln!("macvtap-node-agent: {}", error_chain(error));
}

/// Prints the answer of a command. A reader that leaves early, such as `head`, is not an error.
fn println(text: &str) -> io::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

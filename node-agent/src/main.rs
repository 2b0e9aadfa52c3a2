//! Entry point: a parent process that does nothing but watch over its worker, the worker, and two commands for people.

use anyhow::Context;
use clap::Parser;
use macvtap_node_agent::args::{Arguments, Command, Output, without_glog};
use macvtap_node_agent::supervisor::{self, EXIT_CONFIGURATION};
use macvtap_node_agent::worker::{self, WorkerError};
use macvtap_node_agent::{error_chain, install, probe, report};
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = without_glog(std::env::args_os());
    let first = arguments.get(1).and_then(|argument| argument.to_str());
    let watched_over = !matches!(
        first,
        Some(
            "probe"
                | "links"
                | "install-cni"
                | "help"
                | supervisor::WORKER
                | "-h"
                | "--help"
                | "-V"
                | "--version"
        )
    );
    if watched_over {
        // Nothing is parsed here: the worker says what is wrong, and the parent stays as small as it can be.
        let own = arguments.split_off(1.min(arguments.len()));
        return Ok(supervisor::run(&own)?);
    }
    run(arguments)
}

fn run(arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let Arguments { command, run: _ } = Arguments::parse_from(arguments);
    match command {
        Some(Command::Worker { parent, run }) => {
            supervisor::die_with_parent(parent).context("begin as a worker")?;
            match worker::run(*run) {
                Ok(()) => Ok(ExitCode::SUCCESS),
                Err(error) => Ok(failed(&error)),
            }
        }
        Some(Command::Probe { question, run_dir }) => {
            println(&probe::ask(&run_dir, question)?);
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Links { output }) => {
            println(&match output {
                Output::Text => report::text(&report::links()?),
                Output::Json => report::json(&report::links()?)?,
            });
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::InstallCni { cni_bin_dir, cni_plugin }) => {
            let installed = install::install(&cni_plugin, &cni_bin_dir, env!("CARGO_PKG_VERSION"))?;
            println(&format!("{}: {installed:?}", cni_bin_dir.join("macvtap").display()));
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

#[expect(clippy::print_stderr, reason = "the log may not be up yet, and this line is why the agent ends")]
fn failed(error: &WorkerError) -> ExitCode {
    eprintln!("macvtap-node-agent: {}", error_chain(error));
    if error.is_configuration() { ExitCode::from(EXIT_CONFIGURATION) } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn println(text: &str) {
    println!("{text}");
}

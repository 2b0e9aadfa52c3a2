//! `kubectl macvtap`: what a platform team asks of macvtap networking, answered with the user's own rights.
//!
//! [`facts`] reads a cluster, [`check`], [`status`], [`explain`] and [`plan`] decide without asking anybody, [`output`] prints.
//! The other commands act: each has its decisions beside its calls.

mod advice;
mod args;
mod check;
mod cluster;
mod connectivity;
mod explain;
mod facts;
mod output;
mod plan;
mod prune;
mod report;
mod status;
mod sysdump;
#[cfg(test)]
mod testing;

use anyhow::Result;
use args::{Args, Command};
use clap::{CommandFactory as _, Parser as _};
use cluster::Cluster;
use macvtap_operator::refusal;
use std::process::ExitCode;

/// Name of the executable, by which kubectl finds it.
const PROGRAM: &str = "kubectl-macvtap";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            use std::io::Write as _;
            // Nobody is left to read if this fails.
            let _ = writeln!(std::io::stderr(), "error: {}", refusal::chain(error.as_ref()));
            ExitCode::from(2)
        }
    }
}

/// Runs a command, and returns whether all is well.
async fn run(args: Args) -> Result<bool> {
    let cluster = || Cluster::find(&args.connection);
    match args.command {
        Command::Check(check) => check::run(&cluster().await?, &check).await,
        Command::Status(shown) => status::run(&cluster().await?, shown.output).await.map(|()| true),
        Command::Explain(explain) => explain::run(&cluster().await?, &explain).await,
        Command::Plan(plan) => plan::run(&cluster().await?, &plan).await,
        Command::Connectivity(connectivity) => connectivity::run(&cluster().await?, &connectivity).await,
        Command::Sysdump(sysdump) => sysdump::run(&cluster().await?, &sysdump).await,
        Command::Prune(prune) => prune::run(&cluster().await?, &prune).await,
        Command::Migrate(migrate) => {
            let connect = async || Ok(cluster().await?.client);
            macvtap_operator::migrate::run(migrate, connect).await?;
            Ok(true)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), PROGRAM, &mut script);
            output::write(&String::from_utf8_lossy(&script)).map(|()| true)
        }
    }
}

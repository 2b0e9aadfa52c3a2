//! The operator's executable.

use anyhow::Context;
use clap::Parser;
use kube::Client;
use macvtap_operator::args::{Args, Command, LogFormat};
use macvtap_operator::{migrate, refusal, run, webhook};
use mimalloc::MiMalloc;
use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

// What it does takes little; with a thread for each processor of a large node it would take much memory.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Writes why the program ends, with all causes in one line, to the log if there is one.
#[expect(clippy::print_stderr, reason = "there may be no log, and this line is why the program ends")]
fn complain(error: &(dyn Error + 'static)) {
    let error = refusal::chain(error);
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(error, "the operator ends");
    } else {
        eprintln!("macvtap-operator: {error}");
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let Args { command, serve, log_format, log_level } = args;
    if let Some(Command::Migrate(args)) = command {
        return Ok(migrate::run(args, async || Ok(Client::try_from(run::cluster().await?)?)).await?);
    }
    // The runtime's own spans repeat what our messages say.
    let filter = EnvFilter::try_new(format!("kube_runtime=warn,{log_level}"))
        .with_context(|| format!("read --log-level {log_level:?}"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match log_format {
        LogFormat::Text => subscriber.init(),
        // As the agent writes it: one query finds the messages of both.
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    let shutdown = CancellationToken::new();
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        match run::signalled().await {
            Ok(signal) => tracing::info!(signal, "shutting down"),
            Err(error) => tracing::error!(%error, "signals cannot be received, shutting down"),
        }
        on_signal.cancel();
    });
    match command {
        Some(Command::Webhook(args)) => webhook::run(args, shutdown).await,
        _ => run::run(serve, shutdown).await,
    }
}

//! The log: lines are written on a thread of their own, because a pipe that nobody reads, or a disk that hangs, must not
//! stop what answers the kubelet. Lines that find no room are counted.

use clap::ValueEnum;
use std::io;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::{EnvFilter, fmt};

/// Lines that wait for their reader; more are dropped.
const LINES: usize = 4096;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// The log, until it is dropped: then the lines before it are waited for, for a second.
#[derive(Debug)]
pub struct Log {
    lost: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// Starts the log on standard error. `level` is a filter as `RUST_LOG` has it.
    ///
    /// # Errors
    /// If the level is not a filter.
    pub fn start(format: LogFormat, level: &str) -> Result<Self, ParseError> {
        let filter = EnvFilter::try_new(level)?;
        let lines = NonBlockingBuilder::default().buffered_lines_limit(LINES).lossy(true);
        let (writer, guard) = lines.thread_name("log").finish(io::stderr());
        let lost = writer.error_counter();
        let log = fmt().with_env_filter(filter).with_writer(writer).with_target(false);
        match format {
            LogFormat::Json => log.json().flatten_event(true).init(),
            LogFormat::Text => log.with_ansi(false).init(),
        }
        Ok(Self { lost, _writer: guard })
    }

    /// Returns the count of lines that were lost.
    pub fn lost(&self) -> ErrorCounter {
        self.lost.clone()
    }
}

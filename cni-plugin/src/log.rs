//! Logging to standard error, which the runtime keeps, and to the node's own file if it names one.
//!
//! Every line carries command, container and interface, since the lines of many calls end up in one place. Standard
//! output is the protocol's.

use crate::protocol::environment::Command;
use crate::settings::{LogLevel, Settings};
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Writes events as lines. Spans mean nothing here: one process serves one call.
#[derive(Debug)]
struct Lines {
    level: Level,
    /// What every line ends with.
    context: String,
    file: Option<File>,
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

/// Logs from now on. Without settings (they could not be read) only to standard error.
pub fn start(command: &Command, settings: Option<&Settings>) {
    let mut context = format!("command={}", command.name());
    if let Some((container, interface)) = command.subject() {
        // Writing to a string cannot fail.
        let _ = write!(context, " container={container} interface={interface}");
    }
    install(context, settings);
}

/// Starts the log of a follower, which only the node's file receives: nobody reads its standard error.
pub fn start_follower(device: &str, settings: Option<&Settings>) {
    install(format!("command=FOLLOW device={device}"), settings);
}

fn install(context: String, settings: Option<&Settings>) {
    let path = settings.and_then(|settings| settings.log_file.as_ref());
    let (file, problem) = match path.map(|path| open(path)).transpose() {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let level = level(settings.map(|settings| settings.log_level).unwrap_or_default());
    // Fails only if it was set before: a test that serves many calls in one process.
    let _ = tracing::subscriber::set_global_default(Lines { level, context, file });
    if let Some(error) = problem {
        tracing::warn!(%error, "log file of the node's settings could not be opened");
    }
}

/// Opens the log file. A pipe that nobody reads, or that is full, must not hold up the call.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().append(true).create(true).custom_flags(flags).open(path)
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let Line { message, fields } = line;
        let text = format!("level={} {message:?}{fields} {}\n", event.metadata().level(), self.context);
        // One write per line; where it cannot be written there is no other place to report it.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        if let Some(mut file) = self.file.as_ref() {
            let _ = file.write_all(text.as_bytes());
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={:?}", format!("{value:?}")),
        };
    }
}

fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    }
}

//! The `macvtap` CNI plugin: gives a pod the device it was allocated.
//!
//! One process, one call, no daemon: the node agent's device table says what a device is made of, the procedures of the
//! [`macvtap`] crate make and remove it. [`run`] is the whole program; a module per verb says what the verb does.

pub mod add;
pub mod address;
pub mod check;
pub mod config;
pub mod del;
pub mod follow;
pub mod gc;
pub mod ipam;
pub mod log;
pub mod packet;
pub mod protocol;
pub mod settings;
pub mod status;
pub mod target;

use config::Document;
use macvtap::paths::Paths;
use protocol::environment::{Command, Variables};
use protocol::error::{CniError, Code};
use protocol::version::Version;
use serde_json::Value;
use settings::Settings;
use std::ffi::OsString;
use std::io;

/// What goes to standard output and into the exit code.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// A result, or an error; nothing for a verb that only succeeds.
    pub output: Option<Value>,
    /// Whether `output` is an error.
    pub failed: bool,
}

/// What every verb may use.
#[derive(Debug)]
pub struct Call {
    /// Where things are on the node.
    pub paths: Paths,
    /// The node's own settings.
    pub settings: Settings,
    /// The network configuration.
    pub document: Document,
    /// `CNI_PATH`.
    pub plugin_path: Option<OsString>,
}

/// Serves one call.
pub fn run(variables: &impl Variables, stdin: Result<&[u8], &io::Error>) -> Outcome {
    match serve(variables, stdin) {
        Ok(output) => Outcome { output, failed: false },
        Err(error) => {
            tracing::error!(code = error.code, "{}", error.message);
            // An error about the version itself is reported in the newest form.
            let version = stdin.ok().and_then(Document::version_of).unwrap_or(Version::NEWEST);
            Outcome { output: Some(error.to_json(version)), failed: true }
        }
    }
}

/// Undoes an ADD whose result could not be written: the runtime does not know what the pod got.
pub fn take_back(variables: &impl Variables, stdin: Result<&[u8], &io::Error>) {
    if matches!(Command::read(variables), Ok(Some(Command::Add(_)))) {
        tracing::error!("the result of ADD could not be written; the attachment is removed");
        run(&AsDel(variables), stdin);
    }
}

/// The same call, as a DEL.
struct AsDel<'v, V>(&'v V);

impl<V: Variables> Variables for AsDel<'_, V> {
    fn get(&self, name: &str) -> Option<OsString> {
        if name == "CNI_COMMAND" { Some("DEL".into()) } else { self.0.get(name) }
    }
}

fn serve(variables: &impl Variables, stdin: Result<&[u8], &io::Error>) -> Result<Option<Value>, CniError> {
    let Some(command) = Command::read(variables)? else { return Ok(None) };
    let call = || Call::read(&command, variables, stdin);
    match &command {
        Command::Add(attachment) => {
            let call = call()?;
            add::add(&call, attachment).map(|result| Some(result.to_json(call.document.version)))
        }
        Command::Del(deletion) => del::del(&call()?, deletion).map(|()| None),
        Command::Check(attachment) => check::check(&call()?, attachment).map(|()| None),
        Command::Gc => gc::gc(&call()?).map(|()| None),
        Command::Status => status::status(&call()?).map(|()| None),
        Command::Version => report_versions(stdin.map_err(unreadable)?).map(Some),
    }
}

impl Call {
    /// Reads everything that the command does not name. For a DEL, all of it is optional: a pod must be able to go
    /// whatever was written for it or for the node.
    fn read(
        command: &Command,
        variables: &impl Variables,
        stdin: Result<&[u8], &io::Error>,
    ) -> Result<Self, CniError> {
        let paths = Paths::default();
        let settings = Settings::load(&paths);
        log::start(command, settings.as_ref().ok());
        let plugin_path = variables.get("CNI_PATH");
        if !matches!(command, Command::Del(_)) {
            let document = Document::parse(stdin.map_err(unreadable)?)?;
            return Ok(Self { paths, settings: settings?, document, plugin_path });
        }
        let stdin = stdin.unwrap_or_else(|error| {
            tracing::warn!(%error, "network configuration not read");
            &[]
        });
        let settings = settings.unwrap_or_else(|error| {
            tracing::warn!(%error, "defaults used");
            Settings::default()
        });
        Ok(Self { paths, settings, document: Document::parse_for_del(stdin), plugin_path })
    }
}

fn unreadable(error: &io::Error) -> CniError {
    CniError::new(Code::Io, format!("read the network configuration: {error}"))
}

/// VERSION: the configuration holds only a version, and runtimes before 0.3.0 sent nothing.
fn report_versions(stdin: &[u8]) -> Result<Value, CniError> {
    if stdin.iter().all(u8::is_ascii_whitespace) {
        return Ok(Version::NEWEST.report());
    }
    let json: Value = serde_json::from_slice(stdin)
        .map_err(|error| CniError::new(Code::Decode, format!("standard input is not JSON: {error}")))?;
    // A runtime that speaks another version must be able to find out.
    let asked = json.get("cniVersion").and_then(Value::as_str);
    Ok(Version::of(asked).unwrap_or(Version::NEWEST).report())
}

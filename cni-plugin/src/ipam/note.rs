//! Notes of the attachments whose addresses an IPAM plugin may have leased, one small file each: written before the plugin
//! is asked, removed when it has released them. Without a note a DEL could not distinguish an attachment that never leased
//! anything from one whose plugin was missing when it was detached, and a GC could not release what no DEL released. Kept
//! apart from the attachment records, so that the device itself is free.

use super::descendants::Process;
use crate::Call;
use crate::config::Document;
use crate::protocol::environment::Attachment;
use macvtap::file::{self, Durability, FileError};
use macvtap::paths::Paths;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;

/// More than a note with the longest configuration and arguments takes.
const SIZE_MAX: u64 = 16 << 20;

/// A text that is another each time (random(4)).
const RANDOM_ID: &str = "/proc/sys/kernel/random/uuid";

/// The note of one attachment.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    path: PathBuf,
    container: String,
    interface: String,
    /// Variables of a call for this attachment which the call being served does not have.
    variables: Vec<(&'static str, OsString)>,
    /// Whether it stays whatever is released.
    is_kept: bool,
}

/// What a note says. The first release wrote empty ones.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Noted {
    /// Name of the network.
    network: String,
    /// `CNI_NETNS`.
    netns: String,
    /// `CNI_ARGS`.
    args: String,
    /// The mark of the plugin's processes, while one of them may run.
    mark: Option<String>,
    /// Processes of the plugin that went on when it had answered.
    left: Vec<Process>,
    /// What the plugin answered.
    answer: Option<Value>,
    /// The configuration that the plugin was asked with.
    config: Value,
}

impl Note {
    /// Returns the note of a container's interface; both were judged where they were read, and are file names.
    pub(crate) fn of(paths: &Paths, container: &str, interface: &str) -> Self {
        let path = paths.unreturned().join(format!("{container}:{interface}"));
        let (container, interface) = (container.to_owned(), interface.to_owned());
        Self { path, container, interface, variables: Vec::new(), is_kept: false }
    }

    /// Returns the same note, which stays: what is released is not what it is about.
    pub(crate) fn kept(self) -> Self {
        Self { is_kept: true, ..self }
    }

    /// Returns the note of an attachment.
    pub(crate) fn about<N>(paths: &Paths, attachment: &Attachment<N>) -> Self {
        Self::of(paths, &attachment.container_id, attachment.ifname.as_str())
    }

    /// Returns the notes of a network, for a call that is not about one attachment.
    pub(crate) fn list(paths: &Paths, network: &str) -> Vec<Self> {
        let entries = std::fs::read_dir(paths.unreturned()).into_iter().flatten().flatten();
        let named = |name: &str| {
            let (container, interface) = name.split_once(':').filter(|_| !name.starts_with('.'))?;
            let mut note = Self::of(paths, container, interface);
            let noted = note.read().filter(|noted| noted.network == network)?;
            note.variables = vec![("CNI_CONTAINERID", container.into()), ("CNI_IFNAME", interface.into())];
            let given = [("CNI_NETNS", noted.netns), ("CNI_ARGS", noted.args)].into_iter();
            let given = given.filter(|(_, value)| !value.is_empty());
            note.variables.extend(given.map(|(name, value)| (name, value.into())));
            Some(note)
        };
        entries.filter_map(|entry| named(entry.file_name().to_str()?)).collect()
    }

    /// Returns container and interface of the attachment.
    pub(crate) fn names(&self) -> (String, String) {
        (self.container.clone(), self.interface.clone())
    }

    /// Returns the variables that the plugin gets in addition to those of the call.
    pub(super) fn variables(&self) -> &[(&'static str, OsString)] {
        &self.variables
    }

    /// Whether there is a note.
    pub(crate) fn is_there(&self) -> bool {
        self.read().is_some()
    }

    /// Whether a process of the plugin's ADD may run.
    pub(crate) fn may_run(&self) -> bool {
        self.running().is_some()
    }

    /// Returns the processes of the plugin's ADD that may run: their mark, and those that were seen.
    pub(super) fn running(&self) -> Option<(String, Vec<Process>)> {
        let noted = self.read()?;
        Some((noted.mark?, noted.left))
    }

    /// Returns what the plugin answered, when it was asked the same.
    pub(super) fn answer(&self, document: &Document) -> Option<Value> {
        let noted = self.read()?;
        let is_same = noted.config == document.without_previous() && noted.args == variable("CNI_ARGS");
        noted.answer.filter(|_| is_same)
    }

    /// Returns the call by which the addresses are released, where the given one has another network or other `ipam` than the
    /// one that leased them, or a configuration that cannot be read.
    pub(crate) fn releasing(&self, call: &Call) -> Option<Call> {
        let document = Document::parse(self.read()?.config.to_string().as_bytes()).ok()?;
        document.ipam(&call.settings).ok()??;
        if document.leases_as(&call.document) {
            return None;
        }
        let (paths, settings) = (call.paths.clone(), call.settings.clone());
        Some(Call { paths, settings, document, plugin_path: call.plugin_path.clone() })
    }

    /// Returns the content, if there is a note. One that cannot be parsed says no more than that there is one.
    fn read(&self) -> Option<Noted> {
        match file::read(&self.path, SIZE_MAX) {
            Ok(text) => text.map(|text| serde_json::from_slice(&text).unwrap_or_default()),
            Err(_) => Some(Noted::default()),
        }
    }

    /// Notes that the plugin is being asked. Returns the mark for its processes, which no other attachment has, also not one
    /// of another node on the same kernel.
    pub(super) fn open(&self, document: &Document) -> Result<String, FileError> {
        let mark = match std::fs::read_to_string(RANDOM_ID) {
            Ok(id) => id.trim().to_owned(),
            Err(_) => format!("{}:{}", self.container, self.interface),
        };
        self.write(document, Noted { mark: Some(mark.clone()), ..Noted::default() })?;
        Ok(mark)
    }

    /// Notes what the plugin has answered, and which of its processes go on: those with the mark, if there is one.
    pub(super) fn close(
        &self,
        document: &Document,
        answer: Option<Value>,
        mark: Option<String>,
        left: Vec<Process>,
    ) -> Result<(), FileError> {
        self.write(document, Noted { mark, left, answer, ..Noted::default() })
    }

    fn write(&self, document: &Document, noted: Noted) -> Result<(), FileError> {
        let (netns, args) = (variable("CNI_NETNS"), variable("CNI_ARGS"));
        let (network, config) = (document.name.clone(), document.without_previous());
        let noted = Noted { network, netns, args, config, ..noted };
        let json = serde_json::to_vec(&noted).unwrap_or_default();
        file::replace(&self.path, &json, Durability::Memory)
    }

    /// Leaves a note, whatever it says, after a release that failed; removes it after one that succeeded.
    pub(crate) fn settle<E>(&self, document: &Document, released: &Result<(), E>) -> Result<(), FileError> {
        match (released, self.read()) {
            (Ok(()), _) if self.is_kept => Ok(()),
            (Ok(()), _) => file::remove(&self.path),
            (Err(_), Some(_)) => Ok(()),
            (Err(_), None) => self.write(document, Noted::default()),
        }
    }
}

/// A variable of the call; empty if it is absent or not text.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

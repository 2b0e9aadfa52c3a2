//! IPAM by another plugin: run, understood, undone.

mod announce;
mod answer;
pub mod configure;
mod descendants;
pub mod kube_ovn;
mod note;
mod objection;
mod present;
mod process;
mod route;
mod supervisor;

pub(crate) use announce::announce;
pub(crate) use answer::leased_mac;
pub use answer::understand;
pub(crate) use note::Note;
pub(crate) use objection::Objections;
pub(crate) use present::{check, is_in_use, refuse_twice};
pub use supervisor::{keep_mask, supervise};

use crate::Call;
use crate::config::Ipam;
use crate::config::kube_ovn::KubeOvn;
use crate::protocol::error::{CniError, Code, chain};
use crate::protocol::json;
use crate::protocol::result::CniResult;
use crate::protocol::version::Version;
use descendants::Process;
use kube_ovn::Failure;
use macvtap::mac::MacAddr;
use rustix::fs::{Access, access};
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// The codes of a plugin that is older than GC and STATUS (Debian's set): it does not know the version, misses a container, for
/// it asks for one whatever the command is, or does not know the command.
const OLDER: [u64; 3] = [Code::IncompatibleVersion as u64, 3, Code::Environment as u64];

/// Between two tries while kube-ovn's daemon is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The plugin whose daemon sends its requests through the pod's link: the link must be there, and up, in an ADD, and
/// still be there in a DEL, for the address to be given back.
const DHCP: &str = "dhcp";

/// An IPAM plugin that was found.
#[derive(Debug)]
pub struct Delegate<'c> {
    call: &'c Call,
    plugin: String,
    kube_ovn: Option<KubeOvn>,
    path: PathBuf,
}

/// Addresses an IPAM plugin gave. Given back when dropped, unless kept.
#[derive(Debug)]
pub struct Lease<'d> {
    delegate: &'d Delegate<'d>,
    note: &'d Note,
    result: CniResult,
    kept: bool,
}

/// What a plugin that succeeded answered.
struct Answer {
    json: Option<Value>,
    /// Whether processes that it started go on.
    has_left: bool,
    /// Those of them that were seen.
    left: Vec<Process>,
}

/// How a plugin failed.
struct Failed {
    /// The code it gave.
    code: Option<u64>,
    /// Whether it was started and did not come to its end, so that what it did is unknown.
    cut_off: bool,
    error: CniError,
}

impl<'c> Delegate<'c> {
    /// Finds the plugin in `CNI_PATH`; none when none is configured.
    pub fn new(call: &'c Call, ipam: Option<&Ipam>) -> Result<Option<Self>, CniError> {
        let Some(Ipam { plugin, kube_ovn }) = ipam else {
            return Ok(None);
        };
        let directories = call.plugin_path.clone().unwrap_or_default();
        // An empty entry means the working directory to a shell; here it is a mistake. `CNI_PATH=./bin` is not one.
        let files = std::env::split_paths(&directories)
            .filter(|directory| !directory.as_os_str().is_empty())
            .map(|directory| directory.join(plugin))
            .filter(|path| path.is_file());
        let (executable, other): (Vec<_>, Vec<_>) =
            files.partition(|path| access(path, Access::EXEC_OK).is_ok());
        let path = executable.into_iter().next().ok_or_else(|| {
            let message = match other.first() {
                Some(path) => format!(
                    "IPAM plugin {} is not an executable file; set its mode to 0755 or install it again",
                    path.display()
                ),
                None => format!(
                    "IPAM plugin {plugin} is in none of the directories of CNI_PATH ({}); install it there",
                    directories.display()
                ),
            };
            CniError::new(Code::Ipam, message)
        })?;
        Ok(Some(Self { call, plugin: plugin.clone(), kube_ovn: kube_ovn.clone(), path }))
    }

    /// Whether the plugin works through the pod's link: `dhcp`, also as the target of a symbolic link of another name,
    /// and what the node's administrator lists.
    pub fn needs_link(&self) -> bool {
        let file = self.path.canonicalize().unwrap_or_default();
        file.file_name().is_some_and(|name| name == DHCP)
            || self.plugin == DHCP
            || self.call.settings.ipam_through_link.contains(&self.plugin)
    }

    /// ADD: asks for addresses, which are noted first.
    pub(crate) fn lease<'d>(&'d self, note: &'d Note) -> Result<Lease<'d>, CniError> {
        let unwritten = |error| self.failed("ADD", &chain(&error));
        let mark = note.open(&self.call.document).map_err(unwritten)?;
        let answer = self.ask(note, &mark)?;
        // From here on they are ours to give back, also when the answer is useless.
        let mut lease = Lease { delegate: self, note, result: CniResult::default(), kept: false };
        let Answer { json, has_left, left } = answer;
        let mark = Some(mark).filter(|_| has_left);
        note.close(&self.call.document, json.clone(), mark, left).map_err(unwritten)?;
        let answer = json.ok_or_else(|| self.failed("ADD", "it answered nothing"))?;
        let understood = understand(answer, &self.plugin);
        lease.result = understood.map_err(|error| self.failed("ADD", &error.message))?;
        Ok(lease)
    }

    /// Returns what an earlier ADD of the same attachment leased, with the same configuration, and nothing has released.
    pub(crate) fn leased(&self, note: &Note) -> Option<CniResult> {
        understand(note.answer(&self.call.document)?, &self.plugin).ok()
    }

    /// DEL: gives addresses back. What the plugin's ADD left running could lease again: it is ended after the plugin had the
    /// chance to end it, and what it leased meanwhile is given back too.
    pub(crate) fn del(&self, note: &Note) -> Result<(), CniError> {
        self.settle(note, self.release(note))
    }

    /// DEL for an attachment of which nothing was found. If nothing is noted either, no ADD leased anything by a plugin that
    /// cannot be started, and the pod must go.
    pub(crate) fn del_unfound(&self, note: &Note) -> Result<(), CniError> {
        match self.release(note) {
            Err(failed) if failed.code == Some(supervisor::NOT_STARTED.into()) && !note.is_there() => {
                warn!(error = %failed.error, "no addresses to give back");
                Ok(())
            }
            released => self.settle(note, released),
        }
    }

    fn settle(&self, note: &Note, released: Result<(), Failed>) -> Result<(), CniError> {
        let mut released = released.map_err(|failed| failed.error);
        if note.running().is_some_and(|(mark, left)| descendants::end_left(&mark, &left)) {
            released = self.release(note).map_err(|failed| failed.error);
        }
        let settled = note.settle(&self.call.document, &released);
        released.and(settled.map_err(|error| self.failed("DEL", &chain(&error))))
    }

    fn release(&self, note: &Note) -> Result<(), Failed> {
        match self.run("DEL", note.variables(), self.deadline()) {
            // Nothing is lost: kube-ovn frees an address when the Pod object goes. And the pod must go.
            Err(failed) if self.failure(&failed) == Failure::DaemonAway => {
                warn!(error = %failed.error, "kube-ovn's daemon was not notified, it frees the addresses by itself");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// CHECK, which the specification has from 0.4.0 on: plugins refuse it in an older version.
    pub fn check(&self) -> Result<(), CniError> {
        if self.call.document.version < Version::V0_4_0 {
            return Ok(());
        }
        self.run("CHECK", &[], self.deadline()).map(drop).map_err(|failed| failed.error)
    }

    /// GC, which plugins know from 1.1.0 on.
    pub fn gc(&self) -> Result<(), CniError> {
        self.since_1_1("GC")
    }

    /// STATUS, which plugins know from 1.1.0 on; kube-ovn's does nothing.
    pub fn status(&self) -> Result<(), CniError> {
        if let Some(kube_ovn) = &self.kube_ovn
            && let Err(errno) = kube_ovn::reach(kube_ovn)
        {
            let socket = kube_ovn.socket.display();
            let message = format!(
                "kube-ovn's daemon does not answer at {socket}: {}; is kube-ovn-cni running on this node?",
                std::io::Error::from(errno)
            );
            return Err(CniError::new(Code::NotAvailable, message));
        }
        self.since_1_1("STATUS")
    }

    /// Runs ADD, again and again while kube-ovn's daemon is being restarted or has not heard of the pod.
    fn ask(&self, note: &Note, mark: &str) -> Result<Answer, CniError> {
        let mark = [(descendants::MARK, mark.into())];
        let deadline = self.deadline();
        let patience = Instant::now() + self.call.settings.ipam_retry();
        loop {
            let failed = match self.run("ADD", &mark, deadline) {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if failed.cut_off && self.kube_ovn.is_none() {
                // It may have leased something. One that ended with an error has taken back what it did.
                let _ =
                    self.del(note).inspect_err(|error| warn!(%error, "addresses could not be given back"));
            }
            let passes = self.failure(&failed) != Failure::Other;
            if !passes || Instant::now() + RETRY_PAUSE > patience.min(deadline) {
                if !failed.cut_off {
                    let nothing_leased = note.settle(&self.call.document, &Ok::<_, CniError>(()));
                    nothing_leased.map_err(|error| self.failed("ADD", &chain(&error)))?;
                }
                let CniError { code, message, details } = failed.error;
                let message = match &self.kube_ovn {
                    Some(_) => format!("{message}; {}", kube_ovn::WHERE_TO_LOOK),
                    None => message,
                };
                return Err(CniError { code, message, details });
            }
            warn!(error = %failed.error, "asked again soon");
            thread::sleep(RETRY_PAUSE);
        }
    }

    fn failure(&self, failed: &Failed) -> Failure {
        match &self.kube_ovn {
            Some(_) if failed.code == Some(Code::TryAgain as u64) => kube_ovn::failure(&failed.error.message),
            _ => Failure::Other,
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.call.settings.ipam_timeout()
    }

    fn since_1_1(&self, command: &str) -> Result<(), CniError> {
        let version = self.call.document.version;
        if version < Version::V1_1_0 {
            return Ok(());
        }
        match self.run_as(command, &[], version, self.deadline()) {
            Err(Failed { code: Some(code), error, .. }) if OLDER.contains(&code) => {
                debug!(%error, "plugin is older than the command");
                Ok(())
            }
            outcome => outcome.map(drop).map_err(|failed| failed.error),
        }
    }

    /// Runs the plugin. One that does not know the newest version is asked in the one before, whose results say the same.
    fn run(
        &self,
        command: &str,
        variables: &[(&str, OsString)],
        deadline: Instant,
    ) -> Result<Answer, Failed> {
        let version = self.call.document.version;
        match self.run_as(command, variables, version, deadline) {
            Err(failed)
                if failed.code == Some(Code::IncompatibleVersion as u64) && version > Version::V1_0_0 =>
            {
                self.run_as(command, variables, Version::V1_0_0, deadline)
            }
            outcome => outcome,
        }
    }

    fn run_as(
        &self,
        command: &str,
        variables: &[(&str, OsString)],
        version: Version,
        deadline: Instant,
    ) -> Result<Answer, Failed> {
        let input = self.call.document.for_ipam(version).to_string();
        let output = process::run(&self.path, command, variables, input.as_bytes(), deadline);
        let output = output.map_err(|error| Failed {
            code: None,
            cut_off: !matches!(error, process::RunError::Start { .. }),
            error: self.failed(command, &chain(&error)),
        })?;
        for line in output.stderr.lines() {
            warn!(plugin = self.plugin, "{line}");
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let text = Some(text.trim()).filter(|text| !text.is_empty());
        // What is not JSON is quoted by whatever expects a result.
        let json: Option<Value> =
            text.map(|text| json::decode(text.as_bytes()).unwrap_or_else(|_| text.into()));
        if output.success {
            return Ok(Answer { json, has_left: output.has_left, left: output.left });
        }
        let reason = json.as_ref().and_then(answer::error_text).unwrap_or_else(|| {
            let stderr = Some(output.stderr.trim_end()).filter(|stderr| !stderr.is_empty());
            format!("{}: {}", output.status, stderr.or(text).unwrap_or_default())
        });
        let mut error = self.failed(command, &reason);
        let code = json.as_ref().and_then(|json| json.get("code")?.as_u64());
        // What a caller decides by: another version, trying again, and whether ADD can be served.
        if let Some(code @ (1 | 11 | 50 | 51)) = code {
            error.code = u32::try_from(code).unwrap_or(error.code);
        }
        // One that a signal ended has taken nothing back, nor has one that reports addresses all the same.
        let has_leased = json.as_ref().is_some_and(|json| json.get("ips").is_some());
        Err(Failed { code, cut_off: has_leased || output.status.code().is_none(), error })
    }

    fn failed(&self, command: &str, reason: &str) -> CniError {
        CniError::new(Code::Ipam, format!("IPAM plugin {}: {command}: {reason}", self.plugin))
    }
}

impl Lease<'_> {
    /// What the plugin answered.
    pub fn result(&self) -> &CniResult {
        &self.result
    }

    /// The address of the interface that the plugin chose, if it chose one.
    pub fn mac(&self) -> Option<MacAddr> {
        leased_mac(&self.result)
    }

    /// Whether these are kube-ovn's.
    pub fn is_kube_ovns(&self) -> bool {
        self.delegate.kube_ovn.is_some()
    }

    /// Gives the addresses back.
    pub fn give_back(mut self) -> Result<(), CniError> {
        self.kept = true;
        self.delegate.del(self.note)
    }

    /// The addresses stay.
    pub fn keep(mut self) -> CniResult {
        self.kept = true;
        std::mem::take(&mut self.result)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.delegate.del(self.note)
        {
            warn!(%error, "addresses could not be given back");
        }
    }
}

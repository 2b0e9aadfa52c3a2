//! IPAM by another plugin: run, understood, undone.

pub mod configure;
mod process;

use crate::Call;
use crate::config::Ipam;
use crate::protocol::error::{CniError, Code, chain};
use crate::protocol::result::CniResult;
use crate::protocol::version::Version;
use macvtap::mac::MacAddr;
use serde_json::Value;
use std::path::PathBuf;
use tracing::warn;

/// An IPAM plugin that was found.
#[derive(Debug)]
pub struct Delegate<'c> {
    call: &'c Call,
    plugin: String,
    path: PathBuf,
}

/// Addresses an IPAM plugin gave. Given back when dropped, unless kept.
#[derive(Debug)]
pub struct Lease<'d> {
    delegate: &'d Delegate<'d>,
    result: CniResult,
    kept: bool,
}

impl<'c> Delegate<'c> {
    /// Finds the plugin in `CNI_PATH`; none when none is configured.
    pub fn new(call: &'c Call, ipam: Option<&Ipam>) -> Result<Option<Self>, CniError> {
        let Some(Ipam { plugin }) = ipam else {
            return Ok(None);
        };
        let directories = call.plugin_path.clone().unwrap_or_default();
        let found = std::env::split_paths(&directories)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(plugin))
            .find(|path| path.is_file());
        let path = found.ok_or_else(|| {
            let searched = directories.display();
            let message = format!("IPAM plugin {plugin} is in none of the directories of CNI_PATH ({searched}); install it there");
            CniError::new(Code::Ipam, message)
        })?;
        Ok(Some(Self { call, plugin: plugin.clone(), path }))
    }

    /// ADD: asks for addresses.
    pub fn lease(&self) -> Result<Lease<'_>, CniError> {
        let answer = self.run("ADD")?;
        // From here on they are ours to give back, also when the answer is useless.
        let mut lease = Lease { delegate: self, result: CniResult::default(), kept: false };
        let answer = answer.ok_or_else(|| self.failed("ADD", "it answered nothing"))?;
        lease.result =
            CniResult::parse(answer, &format!("the answer of IPAM plugin {}", self.plugin), Code::Ipam)?;
        if lease.result.ips.is_empty() {
            return Err(
                self.failed("ADD", "its answer has no ips; are plugin and its daemon of one version?")
            );
        }
        Ok(lease)
    }

    /// DEL: gives addresses back.
    pub fn del(&self) -> Result<(), CniError> {
        self.run("DEL").map(drop)
    }

    /// CHECK.
    pub fn check(&self) -> Result<(), CniError> {
        self.run("CHECK").map(drop)
    }

    /// GC, which plugins know from 1.1.0 on.
    pub fn gc(&self) -> Result<(), CniError> {
        self.since_1_1("GC")
    }

    /// STATUS, which plugins know from 1.1.0 on.
    pub fn status(&self) -> Result<(), CniError> {
        self.since_1_1("STATUS")
    }

    fn since_1_1(&self, command: &str) -> Result<(), CniError> {
        if self.call.document.version < Version::V1_1_0 { Ok(()) } else { self.run(command).map(drop) }
    }

    /// Runs the plugin. One that does not know the newest version is asked in the one before, whose results say the same.
    fn run(&self, command: &str) -> Result<Option<Value>, CniError> {
        let version = self.call.document.version;
        match self.run_as(command, version) {
            Err(error) if error.code == Code::IncompatibleVersion as u32 && version > Version::V1_0_0 => {
                self.run_as(command, Version::V1_0_0)
            }
            outcome => outcome,
        }
    }

    fn run_as(&self, command: &str, version: Version) -> Result<Option<Value>, CniError> {
        let input = self.call.document.for_ipam(version).to_string();
        let timeout = self.call.settings.ipam_timeout();
        let output = process::run(&self.path, command, input.into_bytes(), timeout);
        let output = output.map_err(|error| self.failed(command, &chain(&error)))?;
        for line in output.stderr.lines() {
            warn!(plugin = self.plugin, "{line}");
        }
        let json: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.success {
            return Ok(json);
        }
        let told = |key: &str| {
            let text = json.as_ref()?.get(key)?.as_str()?;
            Some(text).filter(|text| !text.is_empty())
        };
        let reason = match (told("msg"), told("details")) {
            (Some(message), Some(details)) => format!("{message}: {details}"),
            (Some(message), None) => message.to_owned(),
            (None, _) => format!("{}: {}", output.status, output.stderr.trim_end()),
        };
        let mut error = self.failed(command, &reason);
        let code = json.as_ref().and_then(|json| json.get("code")?.as_u64());
        // What a caller decides by: another version, trying again, and whether ADD can be served.
        if let Some(code @ (1 | 11 | 50 | 51)) = code {
            error.code = u32::try_from(code).unwrap_or(error.code);
        }
        Err(error)
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
        let place = self.result.ips.iter().find_map(|ip| ip.interface).unwrap_or(0);
        self.result.interfaces.get(place)?.mac.parse().ok()
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
            && let Err(error) = self.delegate.del()
        {
            warn!(%error, "addresses could not be given back");
        }
    }
}

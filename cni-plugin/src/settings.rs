//! The node's own settings for the plugin. Its administrator writes them, so unlike the network configuration they may
//! name files; and an error in them is reported at once.

use crate::protocol::error::{CniError, Code};
use macvtap::file;
use macvtap::paths::Paths;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::Duration;

/// Far above what a file with every setting takes, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// Longer than any runtime waits for a plugin, in seconds.
const LONGEST: u64 = 3_600;

/// Content of `cni.json`. An absent file is an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// A file that gets what standard error gets; appended to, never rotated. Absolute.
    pub log_file: Option<PathBuf>,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Whether `deviceID` may name an existing macvtap of the node also when the agent is not standalone.
    pub move_host_links: bool,
    /// IPAM plugins that, like `dhcp`, send their requests through the pod's link, and so need it UP in an ADD.
    pub ipam_through_link: Vec<String>,
    socket_directories: Option<Vec<PathBuf>>,
    ipam_timeout_seconds: Option<u64>,
    ipam_retry_seconds: Option<u64>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What a person must act on.
    Error,
    /// And what went wrong without harm.
    Warn,
    /// And what happened beside the usual.
    #[default]
    Info,
    /// And every step.
    Debug,
}

impl Settings {
    /// Reads the node's file.
    pub fn load(paths: &Paths) -> Result<Self, CniError> {
        let path = paths.cni_settings();
        let wrong = |problem: String| {
            CniError::new(
                Code::Config,
                format!("the node's {}: {problem}; correct or remove the file", path.display()),
            )
        };
        let text = match file::read(&path, SIZE_MAX) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(Self::default()),
            Err(error) => return Err(wrong(error.source.to_string())),
        };
        // A struct could also be read from a list, and a list would then set nothing without a word.
        let object: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("not a JSON object with settings: {error}")))?;
        let settings: Self =
            serde_json::from_value(object.into()).map_err(|error| wrong(error.to_string()))?;
        let named = settings.log_file.iter().chain(settings.socket_directories.iter().flatten());
        match named.into_iter().find(|path| !path.is_absolute()) {
            Some(relative) => Err(wrong(format!("{} is not an absolute path", relative.display()))),
            None => Ok(settings),
        }
    }

    /// Directories in which the network configuration may name a socket.
    pub fn socket_directories(&self) -> Vec<PathBuf> {
        self.socket_directories.clone().unwrap_or_else(|| vec!["/run/openvswitch".into()])
    }

    /// How long asking an IPAM plugin may take, with all tries. kube-ovn's longest wait for an address is 40 seconds.
    pub fn ipam_timeout(&self) -> Duration {
        Duration::from_secs(self.ipam_timeout_seconds.unwrap_or(60).min(LONGEST))
    }

    /// How long kube-ovn's plugin is asked again while its daemon is away or has not heard of the pod. A daemon is back
    /// half a second after it ended.
    pub fn ipam_retry(&self) -> Duration {
        Duration::from_secs(self.ipam_retry_seconds.unwrap_or(15).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, CniError> {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        std::fs::write(paths.cni_settings(), text).unwrap();
        Settings::load(&paths)
    }

    #[test]
    fn an_absent_file_is_an_empty_one() {
        let paths = Paths::new("/no/such/directory", "/no/such/directory");
        assert_eq!(Settings::load(&paths).unwrap(), Settings::default());
        assert_eq!(load("{}").unwrap(), Settings::default());
        assert_eq!(
            load("{\"ipamTimeoutSeconds\": 18446744073709551615}").unwrap().ipam_timeout().as_secs(),
            LONGEST
        );
        assert_eq!(Settings::default().socket_directories(), [PathBuf::from("/run/openvswitch")]);
    }

    #[test]
    fn a_mistake_in_the_file_is_told() {
        for text in [
            "",
            "[]",
            "[null, \"debug\"]",
            "null",
            "\"debug\"",
            "{\"logLevel\": \"debug\"",
            "{\"logLevel\": [\"debug\"]}",
            "{\"logfile\": \"/a\"}",
            "{\"logLevel\": \"trace\"}",
            "{\"logFile\": \"a.log\"}",
            "{\"socketDirectories\": [\"run\"]}",
        ] {
            let error = load(text).unwrap_err();
            assert_eq!(error.code, 7, "{text}");
            assert!(error.message.contains("cni.json"), "{}", error.message);
        }
    }
}

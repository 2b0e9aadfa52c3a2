//! Puts the CNI plugin where the runtime looks for it.
//!
//! Always by rename: a runtime executes either the old file or the new one, never half of one, and a file that is being
//! executed can be replaced. The version stands in a trailer behind the program, which the kernel does not read; that
//! is how an agent of an older release knows to leave a newer plugin alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tracing::{error, info};

/// What the runtime calls the plugin.
const NAME: &str = "macvtap";

/// Before the version in the trailer.
const MARK: &str = "\nmacvtap-cni ";

/// No trailer is longer.
const TRAILER_MAX: usize = 64;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The plugin was put in place.
    Replaced,
    /// It was there already.
    Same,
    /// A newer one is there, of this version.
    KeptNewer(String),
}

/// The plugin could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub struct InstallError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Installs, and says in the log what came of it.
pub fn install_and_tell(plugin: &Path, directory: &Path) {
    let directory_name = directory.display();
    match install(plugin, directory, env!("CARGO_PKG_VERSION")) {
        Ok(installed) => info!(directory = %directory_name, result = ?installed, "CNI plugin installed"),
        Err(problem) => {
            let reason = crate::error_chain(&problem);
            error!(directory = %directory_name, %reason, "CNI plugin not installed");
        }
    }
}

/// Puts `plugin`, of this version, into the directory, unless a newer one is there.
pub fn install(plugin: &Path, directory: &Path, version: &str) -> Result<Installed, InstallError> {
    let target = directory.join(NAME);
    let mut wanted = fs::read(plugin).map_err(failed("read", plugin))?;
    wanted.extend_from_slice(format!("{MARK}{version}\n").as_bytes());
    let present = match fs::read(&target) {
        Ok(present) => Some(present),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("read", &target)(error)),
    };
    if present.as_ref() == Some(&wanted) {
        return Ok(Installed::Same);
    }
    let newer = present.as_deref().and_then(trailer).filter(|found| is_newer(found, version));
    if let Some(newer) = newer {
        return Ok(Installed::KeptNewer(newer));
    }
    // One name for all time: what a killed installer left is overwritten, not collected.
    let temporary = directory.join(format!(".{NAME}.new"));
    let written = write(&temporary, &wanted);
    written.and_then(|()| fs::rename(&temporary, &target)).map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed("install", &target)(source)
    })?;
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed("fsync", directory))?;
    Ok(Installed::Replaced)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// The version of an installed plugin; none of a foreign one.
fn trailer(program: &[u8]) -> Option<String> {
    let tail = program.get(program.len().saturating_sub(TRAILER_MAX)..)?;
    let start = tail.windows(MARK.len()).rposition(|window| window == MARK.as_bytes())?;
    let version = tail.get(start + MARK.len()..)?.strip_suffix(b"\n")?;
    std::str::from_utf8(version).ok().map(str::to_owned)
}

fn is_newer(found: &str, ours: &str) -> bool {
    match (release(found), release(ours)) {
        (Some(found), Some(ours)) => found > ours,
        _ => false,
    }
}

/// Numbers of a version, and whether it is a release: a pre-release comes before its release.
fn release(version: &str) -> Option<([u64; 3], bool)> {
    let (numbers, is_release) = match version.split_once('-') {
        Some((numbers, _)) => (numbers, false),
        None => (version, true),
    };
    let mut parts = numbers.split('.').map(str::parse);
    let numbers = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    parts.next().is_none().then_some((numbers, is_release))
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError { step, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("bin")).unwrap();
            Self { dir }
        }

        fn bin(&self) -> PathBuf {
            self.dir.path().join("bin")
        }

        fn install(&self, content: &str, version: &str) -> Installed {
            let plugin = self.dir.path().join("plugin");
            fs::write(&plugin, content).unwrap();
            install(&plugin, &self.bin(), version).unwrap()
        }

        fn installed(&self) -> String {
            fs::read_to_string(self.bin().join(NAME)).unwrap()
        }
    }

    #[test]
    fn a_plugin_is_installed_once_and_can_be_executed() {
        let place = Place::new();
        assert_eq!(place.install("one", "0.1.0"), Installed::Replaced);
        assert_eq!(place.install("one", "0.1.0"), Installed::Same);
        assert_eq!(place.installed(), "one\nmacvtap-cni 0.1.0\n");
        let mode = fs::metadata(place.bin().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_dir(place.bin()).unwrap().count(), 1);
    }

    #[test]
    fn a_newer_plugin_is_kept_and_an_older_or_foreign_one_replaced() {
        let place = Place::new();
        fs::write(place.bin().join(NAME), "foreign").unwrap();
        assert_eq!(place.install("one", "0.9.0"), Installed::Replaced);
        assert_eq!(place.install("two", "0.10.0"), Installed::Replaced);
        assert_eq!(place.install("one", "0.9.0"), Installed::KeptNewer("0.10.0".into()));
        assert_eq!(place.install("rc", "0.10.0-rc1"), Installed::KeptNewer("0.10.0".into()));
        assert_eq!(place.install("same version, other build", "0.10.0"), Installed::Replaced);
        fs::write(place.bin().join(NAME), "x\nmacvtap-cni not.a.version\n").unwrap();
        assert_eq!(place.install("one", "0.9.0"), Installed::Replaced);
    }

    #[test]
    fn what_a_killed_installer_left_is_no_obstacle() {
        let place = Place::new();
        fs::write(place.bin().join(".macvtap.new"), "half").unwrap();
        assert_eq!(place.install("one", "0.1.0"), Installed::Replaced);
        assert_eq!(fs::read_dir(place.bin()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_plugin_or_directory_is_named() {
        let place = Place::new();
        let error = install(Path::new("/nonexistent"), &place.bin(), "0.1.0").unwrap_err();
        assert_eq!(error.to_string(), "read /nonexistent");
        fs::write(place.dir.path().join("plugin"), "x").unwrap();
        let error =
            install(&place.dir.path().join("plugin"), Path::new("/nonexistent"), "0.1.0").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/macvtap"), "{error}");
    }
}

//! Puts the CNI plugin where the runtime looks for it.
//!
//! Always by rename: a runtime executes either the old file or the new one, never half of one, and a file that is being
//! executed can be replaced. The version stands in a trailer behind the program, which the kernel does not read; that
//! is how an agent of an older release knows to leave a newer plugin alone.

pub mod keep;

use macvtap::file;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Far above what a plugin takes, in bytes.
const SIZE_MAX: u64 = 256 << 20;

/// What networks call the plugin by (`type` of their configuration); also the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginName {
    /// Its own name.
    Macvtap,
    /// The name that networks written for virt-network-device-plugin have.
    EhostDevice,
}

impl PluginName {
    /// The name, or both names when the second one is wanted.
    pub fn wanted(with_ehost_device: bool) -> &'static [Self] {
        if with_ehost_device { &[Self::Macvtap, Self::EhostDevice] } else { &[Self::Macvtap] }
    }

    /// The file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Macvtap => "macvtap",
            Self::EhostDevice => "ehost-device",
        }
    }
}

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

/// Puts `plugin`, of this version, into the directory under this name, unless a newer one is there.
pub fn install(
    plugin: &Path,
    directory: &Path,
    name: PluginName,
    version: &str,
) -> Result<Installed, InstallError> {
    let name = name.as_str();
    let target = directory.join(name);
    let mut wanted = fs::read(plugin).map_err(failed("read", plugin))?;
    wanted.extend_from_slice(format!("{MARK}{version}\n").as_bytes());
    let present = match file::read(&target, SIZE_MAX) {
        Ok(present) => present.filter(|_| is_executable(&target)),
        // It is replaced.
        Err(error) if error.is_not_a_file() => None,
        Err(error) => return Err(failed("read", &target)(error.source)),
    };
    if present.as_ref() == Some(&wanted) {
        return Ok(Installed::Same);
    }
    let newer = present.as_deref().and_then(trailer).filter(|found| is_newer(found, version));
    if let Some(newer) = newer {
        return Ok(Installed::KeptNewer(newer));
    }
    // One name for all time: what a killed installer left is overwritten, not collected.
    let temporary = directory.join(format!(".{name}.new"));
    let written = write(&temporary, &wanted);
    let placed = || file::rename(&temporary, &target).map_err(|error| error.source);
    written.and_then(|()| placed()).map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed("install", &target)(source)
    })?;
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed("fsync", directory))?;
    Ok(Installed::Replaced)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let _ = file::remove_one(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Whether a runtime finds a plugin of ours here that is at least of this version.
fn serves(target: &Path, version: &str) -> bool {
    // First: a pipe in its place would hold its reader up.
    let program = is_executable(target).then(|| tail(target).ok()).flatten();
    program.and_then(|tail| trailer(&tail)).is_some_and(|found| !is_newer(version, &found))
}

fn is_executable(target: &Path) -> bool {
    fs::metadata(target).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn tail(target: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(target)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TRAILER_MAX as u64)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail)
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
            install(&plugin, &self.bin(), PluginName::Macvtap, version).unwrap()
        }

        fn installed(&self) -> String {
            fs::read_to_string(self.bin().join("macvtap")).unwrap()
        }
    }

    #[test]
    fn a_plugin_is_installed_once_and_can_be_executed() {
        let place = Place::new();
        assert_eq!(place.install("one", "0.1.0"), Installed::Replaced);
        assert_eq!(place.install("one", "0.1.0"), Installed::Same);
        assert_eq!(place.installed(), "one\nmacvtap-cni 0.1.0\n");
        let mode = fs::metadata(place.bin().join("macvtap")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_dir(place.bin()).unwrap().count(), 1);
    }

    #[test]
    fn a_newer_plugin_is_kept_and_an_older_or_foreign_one_replaced() {
        let place = Place::new();
        fs::write(place.bin().join("macvtap"), "foreign").unwrap();
        assert_eq!(place.install("one", "0.9.0"), Installed::Replaced);
        assert_eq!(place.install("two", "0.10.0"), Installed::Replaced);
        assert_eq!(place.install("one", "0.9.0"), Installed::KeptNewer("0.10.0".into()));
        assert_eq!(place.install("rc", "0.10.0-rc1"), Installed::KeptNewer("0.10.0".into()));
        assert_eq!(place.install("same version, other build", "0.10.0"), Installed::Replaced);
        fs::write(place.bin().join("macvtap"), "x\nmacvtap-cni not.a.version\n").unwrap();
        assert_eq!(place.install("one", "0.9.0"), Installed::Replaced);
    }

    #[test]
    fn the_second_name_is_installed_when_asked_for_and_has_a_version_of_its_own() {
        let place = Place::new();
        let plugin = place.dir.path().join("plugin");
        fs::write(&plugin, "one").unwrap();
        let install_all = |names: &[PluginName]| {
            for name in names {
                install(&plugin, &place.bin(), *name, "0.1.0").unwrap();
            }
        };
        install_all(PluginName::wanted(false));
        let files = || {
            let entries = fs::read_dir(place.bin()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(files(), ["macvtap"]);
        // A plugin of somebody else has that name.
        fs::write(place.bin().join("ehost-device"), "foreign").unwrap();
        install_all(PluginName::wanted(true));
        assert_eq!(files(), ["ehost-device", "macvtap"]);
        assert_eq!(fs::read_to_string(place.bin().join("ehost-device")).unwrap(), place.installed());
    }

    #[test]
    fn a_plugin_that_cannot_be_executed_is_replaced() {
        let place = Place::new();
        place.install("one", "0.1.0");
        let target = place.bin().join("macvtap");
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!serves(&target, "0.1.0"));
        assert_eq!(place.install("one", "0.1.0"), Installed::Replaced);
        assert!(serves(&target, "0.1.0"));
    }

    #[test]
    fn a_plugin_serves_when_it_is_ours_and_not_older() {
        let place = Place::new();
        let target = place.bin().join("macvtap");
        assert!(!serves(&target, "0.1.0"), "there is none");
        place.install("one", "0.1.0");
        assert!(serves(&target, "0.1.0") && serves(&target, "0.0.9") && !serves(&target, "0.2.0"));
        let whole = fs::read(&target).unwrap();
        fs::write(&target, &whole[..whole.len() - 1]).unwrap();
        assert!(!serves(&target, "0.1.0"), "cut off");
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
        let name = PluginName::Macvtap;
        let error = install(Path::new("/nonexistent"), &place.bin(), name, "0.1.0").unwrap_err();
        assert_eq!(error.to_string(), "read /nonexistent");
        fs::write(place.dir.path().join("plugin"), "x").unwrap();
        let error =
            install(&place.dir.path().join("plugin"), Path::new("/nonexistent"), name, "0.1.0").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/macvtap"), "{error}");
    }
}

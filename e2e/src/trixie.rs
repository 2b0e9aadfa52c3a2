//! Packages of Debian 13, whatever Debian this machine runs, with all that they depend on: unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{layout, process};

/// The release of Debian.
pub const SUITE: &str = "trixie";

/// Downloads packages with their dependencies to `dir`, and unpacks below `root` those whose names do not begin with any
/// of `left_out`.
pub fn unpack(dir: &Path, packages: &[&str], left_out: &[&str], root: &Path) -> Result<()> {
    let archives = download(dir, packages)?;
    fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    for archive in wanted(&archives, left_out)? {
        process::output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(root))?;
    }
    Ok(())
}

/// Downloads everything by apt with directories of its own: no package of this machine counts as there.
fn download(dir: &Path, packages: &[&str]) -> Result<PathBuf> {
    let apt = dir.join("apt");
    layout::remove(&apt)?;
    for part in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(part)).with_context(|| format!("create {}", apt.join(part).display()))?;
    }
    layout::write(&apt.join("status"), "")?;
    layout::write(&apt.join("debian.sources"), sources()?)?;
    let run = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        for (option, value) in [
            ("Dir::State", apt.join("state")),
            ("Dir::State::status", apt.join("status")),
            ("Dir::Cache", apt.join("cache")),
            ("Dir::Etc::sourcelist", apt.join("debian.sources")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("APT::Sandbox::User", PathBuf::from("root")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command.args(words).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        process::output(&mut command)
    };
    run(&["update", "-q"]).with_context(|| format!("read the package lists of Debian {SUITE}"))?;
    run(&[&["install", "-y", "-q", "--no-install-recommends", "--download-only"], packages].concat())
        .with_context(|| format!("download packages of Debian {SUITE}"))?;
    Ok(apt.join("cache/archives"))
}

/// This machine's own sources, with the other release.
fn sources() -> Result<String> {
    let path = "/etc/apt/sources.list.d/debian.sources";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}; Debian 12 or later has it"))?;
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(text.replace(codename.context("/etc/os-release names no release")?, SUITE))
}

fn wanted(dir: &Path, left_out: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let package = path.extension().is_some_and(|extension| extension == "deb");
        if package && !left_out.iter().any(|prefix| name.starts_with(prefix)) {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "apt downloaded nothing to {}", dir.display());
    found.sort();
    Ok(found)
}

//! The programs of a release, for every platform.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::VERSION;
use crate::images::{self, AGENT, CLI, Crate, OPERATOR, PLUGIN, TAPGUEST};
use crate::layout::Checkout;
use crate::{process, progress};

/// The programs of a release.
pub(super) const PROGRAMS: [Crate; 5] = [OPERATOR, AGENT, PLUGIN, CLI, TAPGUEST];

/// A processor that a release is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Platform {
    Amd64,
    Arm64,
}

impl Platform {
    pub(super) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// As Go, OCI and Kubernetes call it.
    pub(super) const fn oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust and the kernel call it.
    const fn rust(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    fn is_ours(self) -> bool {
        self.rust() == std::env::consts::ARCH
    }

    /// The plugin starts fastest with musl; the daemons and the CLI are glibc's, as in the images of the tests.
    pub(super) fn target(self, profile: &str) -> String {
        let library = if profile == PLUGIN.profile { "musl" } else { "gnu" };
        format!("{}-unknown-linux-{library}", self.rust())
    }
}

/// Builds all programs for a platform. What writes a time into a program writes that of the commit, and what writes the path
/// of a source writes one that is the same everywhere.
pub(super) fn compile(checkout: &Checkout, platform: Platform, seconds: u64) -> Result<()> {
    for profile in ["release", "cni"] {
        let target = platform.target(profile);
        let mut command = images::cargo_for(checkout, "build", &target);
        command
            .args(["--profile", profile])
            .stdin(Stdio::null())
            .env("SOURCE_DATE_EPOCH", seconds.to_string())
            .arg("--target-dir")
            .arg(directory(checkout))
            .args(["--config", &remapped(checkout, &target)?]);
        if !platform.is_ours() {
            // Compiler and linker of the other processor; the linker of Rust itself is enough for musl.
            let linker = if target.ends_with("gnu") {
                format!("{}-linux-gnu-gcc", platform.rust())
            } else {
                "rust-lld".to_owned()
            };
            let variable = target.to_uppercase().replace('-', "_");
            command.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
        }
        for krate in PROGRAMS.iter().filter(|krate| krate.profile == profile) {
            command.args(["-p", krate.package, "--bin", krate.program]);
        }
        let step = format!("programs for {target}");
        let expected = Duration::from_secs(if profile == "cni" { 45 } else { 600 });
        progress::timed(&step, expected, || process::output(&mut command).map(drop))?;
    }
    Ok(())
}

/// Apart from other builds, which have no paths to hide and would be compiled again.
fn directory(checkout: &Checkout) -> PathBuf {
    checkout.path("target/release-build")
}

/// Paths of this machine that must not be in a program, each with what stands for it.
fn places(checkout: &Checkout) -> Result<[(String, &'static str); 2]> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    Ok([(checkout.root().display().to_string(), "/source"), (home.display().to_string(), "/cargo")])
}

/// The configuration of Cargo that replaces these paths, as an addition to the flags of static programs.
fn remapped(checkout: &Checkout, target: &str) -> Result<String> {
    let flags = places(checkout)?.map(|(from, to)| format!("\"--remap-path-prefix={from}={to}\""));
    Ok(format!("target.{target}.rustflags=[{}]", flags.join(",")))
}

fn path(checkout: &Checkout, platform: Platform, krate: Crate) -> PathBuf {
    directory(checkout).join(platform.target(krate.profile)).join(krate.profile).join(krate.program)
}

/// A program that was built.
pub(super) fn read(checkout: &Checkout, platform: Platform, krate: Crate) -> Result<Vec<u8>> {
    let path = path(checkout, platform, krate);
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Runs every program of a platform, those of another processor in an emulator, and checks that none of them names a path of
/// this machine: two checkouts give the same bytes.
pub(super) fn check(checkout: &Checkout, platform: Platform) -> Result<()> {
    let start = |krate: Crate| {
        let program = path(checkout, platform, krate);
        if platform.is_ours() {
            return Command::new(program);
        }
        let mut command = Command::new(format!("qemu-{}", platform.rust()));
        command.arg(program);
        command
    };
    for krate in PROGRAMS {
        let content = read(checkout, platform, krate)?;
        for (place, _) in places(checkout)? {
            let found = content.windows(place.len()).any(|part| part == place.as_bytes());
            ensure!(!found, "{} for {} contains the path {place}", krate.program, platform.oci());
        }
    }
    for krate in [OPERATOR, AGENT, CLI] {
        let text = process::output(start(krate).arg("--version"))?;
        ensure!(
            text.contains(VERSION),
            "{} for {} says {text:?}, not {VERSION}",
            krate.program,
            platform.oci()
        );
    }
    // It reads the links of this machine through netlink, whose structures differ between processors.
    let links = process::output(start(AGENT).arg("links"))?;
    ensure!(!links.trim().is_empty(), "macvtap-node-agent links for {} says nothing", platform.oci());
    let asked = r#"{"cniVersion": "1.1.0"}"#;
    let text = process::output_with_input(
        start(PLUGIN).env_clear().env("PATH", "/usr/bin:/bin").env("CNI_COMMAND", "VERSION"),
        asked,
    )?;
    ensure!(text.contains("supportedVersions"), "the plugin for {} says {text:?}", platform.oci());
    // It says how it is called, and ends in failure.
    let usage = start(TAPGUEST).output().context("start tapguest")?;
    ensure!(
        String::from_utf8_lossy(&usage.stdout).contains("usage: tapguest"),
        "tapguest for {} says {usage:?}",
        platform.oci()
    );
    progress::say(format_args!("  {}: every program runs", platform.oci()));
    Ok(())
}

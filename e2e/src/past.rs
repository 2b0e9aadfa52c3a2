//! Programs of an earlier commit, built from the history of this repository.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::images::{self, Crate, PLUGIN};
use crate::layout::{self, Checkout};
use crate::{process, progress};

/// A commit whose sources and programs are kept in a directory below `target`.
pub(crate) struct Past<'a> {
    /// The history.
    pub(crate) checkout: &'a Checkout,
    /// Anything that names a commit.
    pub(crate) commit: &'a str,
    /// Holds `source` and `target`.
    pub(crate) directory: PathBuf,
}

impl Past<'_> {
    /// Where its sources are.
    pub(crate) fn source(&self) -> PathBuf {
        self.directory.join("source")
    }

    /// Takes the sources from the history unless they are there.
    pub(crate) fn unpack(&self) -> Result<()> {
        let (source, complete) = (self.source(), self.directory.join("commit"));
        if std::fs::read_to_string(&complete).is_ok_and(|commit| commit == self.commit) {
            return Ok(());
        }
        layout::remove(&source)?;
        std::fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
        let archive = self.directory.join("source.tar");
        let mut git = Command::new("git");
        git.args(["archive", "--format=tar", "-o"]).arg(&archive).arg(self.commit);
        process::output(git.current_dir(self.checkout.root())).with_context(|| {
            format!(
                "take commit {} from the history; a shallow clone has none: git fetch --unshallow",
                self.commit
            )
        })?;
        process::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
        layout::remove(&archive)?;
        layout::write(&complete, self.commit)
    }

    /// Builds programs as they were shipped.
    pub(crate) fn compile(&self, name: &str, crates: &[Crate]) -> Result<()> {
        for profile in [images::OPERATOR.profile, PLUGIN.profile] {
            let wanted: Vec<&Crate> = crates.iter().filter(|krate| krate.profile == profile).collect();
            if wanted.is_empty() {
                continue;
            }
            let mut command = Command::new("cargo");
            command.args(["build", "--locked", "--config", "images/static.toml", "--profile", profile]);
            command.args(["--target", &images::target(self.checkout, profile)?, "--target-dir"]);
            command.arg(self.directory.join("target")).current_dir(self.source()).stdin(Stdio::null());
            process::without_crate(&mut command);
            for krate in wanted {
                command.args(["-p", krate.package, "--bin", krate.program]);
            }
            let step = format!("{name} ({profile})");
            let expected = Duration::from_secs(if profile == PLUGIN.profile { 45 } else { 480 });
            progress::timed(&step, expected, || process::output(&mut command).map(drop))?;
        }
        Ok(())
    }

    /// The path of a program that was built.
    pub(crate) fn program(&self, krate: Crate) -> Result<PathBuf> {
        let built = self.directory.join("target").join(images::target(self.checkout, krate.profile)?);
        Ok(built.join(krate.profile).join(krate.program))
    }
}

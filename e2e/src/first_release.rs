//! The first release, built from the history of this repository: what an upgrade starts from and a rollback returns to.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::images::{self, AGENT, Crate, Image, OPERATOR, PLUGIN};
use crate::layout::{self, Checkout};
use crate::{process, progress};

/// Its version.
pub const VERSION: &str = "0.1.0";

/// The commit that counts as that release.
const COMMIT: &str = "7245445";

/// The images, with the programs that are built for each.
const IMAGES: [(&str, &[Crate]); 2] =
    [("macvtap-operator", &[OPERATOR]), ("macvtap-node-agent", &[AGENT, PLUGIN])];

/// Its chart, after [`build`].
pub fn chart(checkout: &Checkout) -> PathBuf {
    source(checkout).join("charts/macvtap-operator")
}

/// The reference of one of its images in a local cluster.
pub fn reference(name: &str) -> String {
    format!("localhost/{name}:{VERSION}")
}

/// The archives of its images, after [`build`].
pub fn archives(checkout: &Checkout) -> Vec<PathBuf> {
    IMAGES.iter().map(|(name, _)| archive(checkout, name)).collect()
}

/// Takes the sources of the release from the history and builds its images; what is there already stays.
pub fn build(checkout: &Checkout) -> Result<Vec<Image>> {
    let _lock = checkout.lock("first-release")?;
    unpack(checkout)?;
    for profile in [OPERATOR.profile, PLUGIN.profile] {
        compile(checkout, profile)?;
    }
    IMAGES.iter().map(|(name, crates)| pack(checkout, name, crates)).collect()
}

fn unpack(checkout: &Checkout) -> Result<()> {
    let source = source(checkout);
    let complete = source.with_file_name("commit");
    if std::fs::read_to_string(&complete).is_ok_and(|commit| commit == COMMIT) {
        return Ok(());
    }
    layout::remove(&source)?;
    std::fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
    let archive = source.with_file_name("source.tar");
    let mut git = Command::new("git");
    git.args(["archive", "--format=tar", "-o"]).arg(&archive).arg(COMMIT).current_dir(checkout.root());
    process::output(&mut git).with_context(|| {
        format!("take commit {COMMIT} from the history; a shallow clone has none: git fetch --unshallow")
    })?;
    process::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
    layout::remove(&archive)?;
    layout::write(&complete, COMMIT)
}

fn compile(checkout: &Checkout, profile: &str) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["build", "--locked", "--config", "images/static.toml", "--profile", profile]);
    command.args(["--target", &images::target(checkout, profile)?, "--target-dir"]).arg(target(checkout));
    command.current_dir(source(checkout)).stdin(Stdio::null());
    process::without_crate(&mut command);
    for krate in IMAGES.iter().flat_map(|(_, crates)| *crates).filter(|krate| krate.profile == profile) {
        command.args(["-p", krate.package, "--bin", krate.program]);
    }
    let step = format!("{VERSION} ({profile})");
    let expected = Duration::from_secs(if profile == PLUGIN.profile { 45 } else { 480 });
    progress::timed(&step, expected, || process::output(&mut command).map(drop))
}

fn pack(checkout: &Checkout, name: &str, crates: &[Crate]) -> Result<Image> {
    let out = target(checkout).with_file_name("image-out").join(name);
    layout::remove(&out)?;
    for krate in crates {
        let built = target(checkout).join(images::target(checkout, krate.profile)?).join(krate.profile);
        let program = built.join(krate.program);
        let content = std::fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        layout::write(&out.join(krate.program), content)?;
        images::executable(&out.join(krate.program))?;
    }
    let containerfile = source(checkout).join("images").join(name).join("Containerfile");
    images::pack(name, &containerfile, &out, &reference(name), &archive(checkout, name))
}

fn directory(checkout: &Checkout) -> PathBuf {
    checkout.artefacts().join("first-release")
}

fn source(checkout: &Checkout) -> PathBuf {
    directory(checkout).join("source")
}

fn target(checkout: &Checkout) -> PathBuf {
    directory(checkout).join("target")
}

fn archive(checkout: &Checkout, name: &str) -> PathBuf {
    directory(checkout).join("images").join(format!("{name}.tar"))
}

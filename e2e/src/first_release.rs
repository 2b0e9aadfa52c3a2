//! The first release, built from the history of this repository: what an upgrade starts from and a rollback returns to.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::images::{self, AGENT, Crate, Image, OPERATOR, PLUGIN};
use crate::layout::{self, Checkout};
use crate::past::Past;

/// Its version.
pub const VERSION: &str = "0.1.0";

/// The commit that counts as that release.
const COMMIT: &str = "7245445";

/// The images, with the programs that are built for each.
const IMAGES: [(&str, &[Crate]); 2] =
    [("macvtap-operator", &[OPERATOR]), ("macvtap-node-agent", &[AGENT, PLUGIN])];

/// Its chart, after [`build`].
pub fn chart(checkout: &Checkout) -> PathBuf {
    release(checkout).source().join("charts/macvtap-operator")
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
    let release = release(checkout);
    release.unpack()?;
    let crates: Vec<Crate> = IMAGES.iter().flat_map(|(_, crates)| *crates).copied().collect();
    release.compile(VERSION, &crates)?;
    IMAGES.iter().map(|(name, crates)| pack(&release, name, crates)).collect()
}

fn pack(release: &Past<'_>, name: &str, crates: &[Crate]) -> Result<Image> {
    let out = release.directory.join("image-out").join(name);
    layout::remove(&out)?;
    for krate in crates {
        let program = release.program(*krate)?;
        let content = std::fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        layout::write(&out.join(krate.program), content)?;
        images::executable(&out.join(krate.program))?;
    }
    let containerfile = release.source().join("images").join(name).join("Containerfile");
    images::pack(name, &containerfile, &out, &reference(name), &archive(release.checkout, name))
}

fn release(checkout: &Checkout) -> Past<'_> {
    Past { checkout, commit: COMMIT, directory: checkout.artefacts().join("first-release") }
}

fn archive(checkout: &Checkout, name: &str) -> PathBuf {
    release(checkout).directory.join("images").join(format!("{name}.tar"))
}

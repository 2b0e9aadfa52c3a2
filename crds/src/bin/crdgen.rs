//! Writes the CRDs to `crds/yaml` and into the chart, and the API reference into the documentation.

use anyhow::Context;
use std::path::Path;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate is not in a workspace")?;
    for directory in macvtap_crds::generate::DIRECTORIES {
        let directory = root.join(directory);
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        for (name, text) in macvtap_crds::generate::files()? {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
    }
    let path = root.join(macvtap_crds::reference::PATH);
    std::fs::write(&path, macvtap_crds::reference::page()?)
        .with_context(|| format!("write {}", path.display()))
}

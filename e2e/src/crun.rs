//! crun of Debian 13 with its own C library, which starts the containers of pods whose `RuntimeClass` names it. That of
//! Debian 12 refuses the sandboxes of containerd 2.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::layout::{self, Checkout};
use crate::{progress, trixie};

/// Starts crun with its own libraries. crun refuses a machine where the second version of cgroups has controllers next to
/// the first, so it runs in a mount namespace without the second.
const START: &str = r#"#!/bin/sh
root=$(dirname "$0")/root/usr
exec unshare --mount --propagation slave sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"' crun \
    "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/lib/x86_64-linux-gnu" "$root/bin/crun" "$@"
"#;

/// The program, which is there after [`ensure`].
pub fn program(checkout: &Checkout) -> PathBuf {
    checkout.artefacts().join("crun/crun")
}

/// Unpacks it unless it is there.
pub fn ensure(checkout: &Checkout) -> Result<()> {
    let _lock = checkout.lock("crun")?;
    let program = program(checkout);
    if fs::read_to_string(&program).is_ok_and(|found| found == START) {
        return Ok(());
    }
    let dir = checkout.artefacts().join("crun");
    let root = dir.join("root");
    progress::timed("crun of Debian 13", Duration::from_secs(15), || {
        layout::remove(&root)?;
        trixie::unpack(&dir, &["crun"], &[], &root)
    })?;
    layout::write(&program, START)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} a program", program.display()))
}

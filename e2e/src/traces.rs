//! What a cluster leaves on the machine, found by the cluster's names alone and removed: nothing is read from its state,
//! which may be half written or gone.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::layout::{self, Layout};
use crate::{cgroups, namespaces, process, wait};

/// Ends every process and removes every trace. Nothing is read from the state: all is found by the cluster's names.
pub fn remove(layout: &Layout) -> Result<()> {
    let prefix = layout.netns_prefix();
    let inside: Vec<_> = namespaces::list(&prefix)
        .iter()
        .filter_map(|name| namespaces::identity(&namespaces::path(name)))
        .collect();
    process::kill_all(&format!("the processes of cluster {:?}", layout.name), |proc| {
        process::marked(proc, &layout.id) || namespaces::holds(proc, &inside) || in_cgroup(proc, &prefix)
    })?;
    namespaces::remove(&prefix)?;
    cgroups::remove(&prefix)?;
    // The kernel lets go of the last mounts a moment after the last process.
    wait::until("the removal of its files", Duration::from_secs(10), || {
        layout::remove(&layout.dir()).map(Some)
    })
}

/// Whether the process behind this `/proc` directory is in a cgroup whose name starts with `prefix`.
fn in_cgroup(proc: &Path, prefix: &str) -> bool {
    let groups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    groups.lines().any(|line| {
        line.splitn(3, ':').nth(2).is_some_and(|group| group.trim_start_matches('/').starts_with(prefix))
    })
}

/// What is left of a cluster, for those who check that nothing is.
pub fn find(layout: &Layout) -> Result<Vec<String>> {
    let prefix = layout.netns_prefix();
    let mut found = namespaces::list(&prefix);
    found.extend(cgroups::groups(&prefix).iter().map(|group| group.display().to_string()));
    found.extend(
        process::find(|proc| process::marked(proc, &layout.id)).iter().map(|pid| format!("process {pid}")),
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let own = [layout.dir().display().to_string(), prefix];
    found.extend(mounts.lines().filter(|line| own.iter().any(|own| line.contains(own))).map(str::to_owned));
    if layout.dir().exists() {
        found.push(layout.dir().display().to_string());
    }
    Ok(found)
}

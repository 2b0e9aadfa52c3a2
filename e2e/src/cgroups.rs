//! The cgroup below which a node keeps its pods: two kubelets on one tree would delete each other's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait;

const ROOT: &str = "/sys/fs/cgroup";

/// The hierarchies of this machine: the unified one, or each of the first version's.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("list {ROOT}"))? {
        let entry = entry?;
        // `cpu,cpuacct` may be mounted once and linked twice.
        if entry.file_type()?.is_dir() && entry.path().join("cgroup.procs").exists() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Makes the cgroup in every hierarchy.
pub fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        // Version 1: nothing can join a group without processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = group.join(file);
            if own.exists() && !group.join("cgroup.controllers").exists() {
                let value = fs::read(hierarchy.join(file)).with_context(|| format!("read {file}"))?;
                fs::write(&own, value).with_context(|| format!("write {}", own.display()))?;
            }
        }
        delegate(&hierarchy, &group);
    }
    Ok(())
}

/// Version 2: a controller works below a group only when the group hands it on. Which ones the kubelet misses it says
/// itself, so a controller that cannot be handed on is not an error here.
fn delegate(hierarchy: &Path, group: &Path) {
    let Ok(controllers) = fs::read_to_string(group.join("cgroup.controllers")) else { return };
    if hierarchy != Path::new(ROOT) {
        return;
    }
    let available = fs::read_to_string(hierarchy.join("cgroup.controllers")).unwrap_or(controllers);
    for controller in available.split_whitespace() {
        for parent in [hierarchy, group] {
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The top directories, in all hierarchies, whose name starts with `prefix`.
pub fn groups(prefix: &str) -> Vec<PathBuf> {
    let tops = hierarchies().unwrap_or_default().into_iter().flat_map(|hierarchy| children(&hierarchy));
    tops.filter(|group| {
        group.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
    })
    .collect()
}

/// Removes the cgroups whose name starts with `prefix`. Their processes must have been killed: the kernel takes a
/// moment to let go of them.
pub fn remove(prefix: &str) -> Result<()> {
    wait::until("empty cgroups", Duration::from_secs(10), || {
        for group in groups(prefix) {
            remove_tree(&group)?;
        }
        Ok(Some(()))
    })
}

fn remove_tree(group: &Path) -> Result<()> {
    for child in children(group) {
        remove_tree(&child)?;
    }
    fs::remove_dir(group).with_context(|| format!("remove {}", group.display()))
}

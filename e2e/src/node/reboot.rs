//! A node that loses its power, as near as it goes without a kernel of its own: every process ends at once, what memory held
//! is gone, and the disk is as it was.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Node;
use crate::{cgroups, namespaces, process};

/// Unmounts what the node's processes had mounted, and removes its links and what lay in `/run`. What the holder of its mounts
/// keeps there for the others stays.
const FORGET: &str = r#"
set -e
awk '{ print $5 }' /proc/self/mountinfo | grep -E '^/(run|var/lib/kubelet|var/lib/moved)/.' | grep -v '^/run/overlay' |
  sort -r | while read -r mount; do umount -l "$mount" 2>/dev/null || true; done
find /run -mindepth 1 -maxdepth 1 ! -name overlay -exec rm -rf --one-file-system {} +
mkdir -p /run/netns /run/lock
for link in /sys/class/net/*; do ip link del "${link##*/}" 2>/dev/null || true; done
"#;

/// The device table, which says by which boot it was written.
const TABLE: &str = "var/lib/macvtap/devices.json";

impl Node {
    /// Ends everything on the node. Its disk stays, and is that of another boot.
    pub fn power_off(&self) -> Result<()> {
        let holder = self.holder()?;
        let netns = namespaces::identity(&namespaces::path(&self.layout.netns()));
        let netns = netns.context("find the node's network namespace")?;
        let (mark, group) = (&self.layout.cluster.id, self.layout.cgroup());
        let is_of_pods = |process: &Path| {
            let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            groups.lines().any(|line| line.split('/').any(|part| part == group))
        };
        process::kill_all(&format!("the processes of {}", self.name()), |process| {
            let is_daemon = || process::marked(process, mark) && namespaces::holds(process, &[netns]);
            is_of_pods(process) || is_daemon() && !holds_mounts(process, holder)
        })?;
        cgroups::remove(&group)?;
        cgroups::create(&group)?;
        self.exec(&["sh", "-c", FORGET])?;
        let table = self.root()?.join(TABLE);
        // The machine's boot ID is what it was, so the table's becomes another one.
        if let Ok(text) = fs::read_to_string(&table) {
            let mut written: serde_json::Value = serde_json::from_str(&text).context("read the table")?;
            written["bootId"] = "00000000-0000-4000-8000-000000000000".into();
            fs::write(&table, written.to_string()).context("write the table")?;
        }
        Ok(())
    }

    /// Makes and starts what a node has when it gets power, as far as it is missing.
    pub fn power_on(&self) -> Result<()> {
        namespaces::ensure_node(&self.layout)?;
        self.start_containerd()?;
        self.start_kubelet()?;
        self.start_proxy()
    }
}

/// Whether this is what keeps the node's mounts: the holder, its child, or what that one sleeps with.
fn holds_mounts(process: &Path, holder: u32) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let Some((before, after)) = stat.rsplit_once(')') else { return false };
    let pid = before.split(' ').next().and_then(|pid| pid.parse().ok());
    let parent = after.split_whitespace().nth(1).and_then(|pid| pid.parse().ok());
    pid == Some(holder) || parent == Some(holder) || before.ends_with("(sleep")
}

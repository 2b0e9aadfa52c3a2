//! The processes of pods, known by their cgroups: whatever API server, kubelet, runtime or product say.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::layout::Layout;
use crate::process;

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: u32,
    /// When it started: with the pid this is an identity.
    pub(super) start: u64,
    pub(super) command: String,
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) container: String,
    /// Inode of its network namespace.
    pub(super) netns: u64,
}

impl Process {
    /// Whether it only holds a sandbox.
    pub(super) fn is_sandbox(&self) -> bool {
        self.command == "pause"
    }

    /// Whether it still runs.
    pub(super) fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|now| now.start == self.start)
    }
}

/// All processes of pods of a cluster.
pub(super) fn of_pods(layout: &Layout) -> Vec<Process> {
    let groups: Vec<(String, String)> =
        layout.nodes(u8::MAX).iter().map(|node| (node.cgroup(), node.name())).collect();
    process::find(|_| true).into_iter().filter_map(|pid| of_pod(pid, &groups)).collect()
}

fn of_pod(pid: u32, groups: &[(String, String)]) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let place = text.lines().find_map(|line| place(line, groups))?;
    let stat = stat(pid)?;
    let netns = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
    let (node, pod, container) = place;
    Some(Process {
        pid,
        parent: stat.parent,
        start: stat.start,
        command: stat.command,
        node,
        pod,
        container,
        netns,
    })
}

/// Node, pod and container in a line of `/proc/PID/cgroup`.
fn place(line: &str, groups: &[(String, String)]) -> Option<(String, String, String)> {
    let mut parts = line.rsplit(':').next()?.split('/');
    let node = parts.by_ref().find_map(|part| groups.iter().find(|(group, _)| group == part))?;
    let pod = parts.by_ref().find_map(|part| part.strip_prefix("pod").filter(|uid| uid.len() == 36))?;
    let container = parts.next()?;
    Some((node.1.clone(), pod.to_owned(), container.to_owned()))
}

struct Stat {
    command: String,
    parent: u32,
    start: u64,
}

/// Nothing for a zombie: it holds nothing.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = text.rsplit_once(')')?;
    let (_, command) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return None;
    }
    let parent = fields.get(1)?.parse().ok()?;
    Some(Stat { command: command.to_owned(), parent, start: fields.get(19)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_says_node_pod_and_container() {
        let groups = [("mvt-a-n1".to_owned(), "n1".to_owned())];
        let uid = "0f5b1e0e-6f0f-4d52-8f0e-7d0d6d1b2a11";
        let line = format!("5:memory:/mvt-a-n1/kubepods/besteffort/pod{uid}/abc");
        assert_eq!(place(&line, &groups), Some(("n1".into(), uid.into(), "abc".into())));
        let unified = format!("0::/outer/mvt-a-n1/kubepods/pod{uid}/abc");
        assert_eq!(place(&unified, &groups), Some(("n1".into(), uid.into(), "abc".into())));
        assert_eq!(place("0::/user.slice", &groups), None);
        assert_eq!(place(&line.replace("a-n1", "b-n1"), &groups), None);
    }

    #[test]
    fn a_process_that_ended_or_started_anew_is_another_one() {
        let own = stat(std::process::id()).unwrap();
        let process = Process {
            pid: std::process::id(),
            parent: own.parent,
            start: own.start,
            command: own.command,
            node: String::new(),
            pod: String::new(),
            container: String::new(),
            netns: 0,
        };
        assert!(process.runs());
        assert!(!Process { start: own.start + 1, ..process }.runs());
    }
}

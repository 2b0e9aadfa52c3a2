//! The processes that an IPAM plugin started, however they detached themselves: a process group ends with `setsid(2)`, the
//! line of descent does not, nor do the environment variables. What a plugin that succeeded left behind is given to the
//! process that serves the ADD and noted, for it may have another environment. Read from `/proc`, where kernels without
//! `CONFIG_PROC_CHILDREN` list no children.
//!
//! A process that listens on a socket is spared: it serves others too, and what it leased is released by the DEL of its
//! plugin.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{Duration, Instant};

/// How long the end of killed processes is waited for. One that the kernel holds ends later.
const PATIENCE: Duration = Duration::from_secs(2);

/// The variable that every process of an ADD's IPAM plugin inherits, unless it is started with an environment of its own.
pub(super) const MARK: &str = "MACVTAP_LEASING";

/// A process that stays distinguishable when its number is given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    number: i32,
    /// When it started, in clock ticks since the machine did (proc(5)).
    started: u64,
}

impl Process {
    fn of(process: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // Its name, the second field, can contain anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let started = fields.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { number: process.as_raw_pid(), started })
    }

    /// The process itself and everything that it has started, if it still runs.
    fn family(self) -> Vec<Pid> {
        let own = Pid::from_raw(self.number).filter(|own| Self::of(*own) == Some(self));
        let mut family: Vec<Pid> = own.into_iter().collect();
        let mut next = 0;
        while let Some(process) = family.get(next) {
            family.extend(children(*process));
            next += 1;
        }
        family
    }
}

/// Returns the processes that were given to the calling process when their parents ended.
pub(super) fn adopted() -> Vec<Process> {
    if !is_proc_ours() {
        return Vec::new();
    }
    children(getpid()).into_iter().filter_map(Process::of).collect()
}

/// Kills every living descendant of a process, which is the one that orphans among them are given to: the children of a
/// child that ends are its own children then, so it is enough to kill those until there are none.
pub(super) fn end(root: Pid) {
    end_all(|| living(|| children(root)));
}

/// Whether a process has living children.
pub(super) fn has_left(root: Pid) -> bool {
    is_proc_ours() && !living(|| children(root)).is_empty()
}

/// Kills every process that bears this mark, and these with all that they started. Returns whether there was one.
pub(super) fn end_left(mark: &str, left: &[Process]) -> bool {
    let entry = format!("{MARK}={mark}");
    let list =
        || marked(entry.as_bytes()).into_iter().chain(left.iter().flat_map(|one| one.family())).collect();
    end_all(|| living(list))
}

/// Kills what is found until nothing is. Returns whether there was something.
fn end_all(find: impl Fn() -> Vec<OwnedFd>) -> bool {
    if !is_proc_ours() {
        return false;
    }
    let until = Instant::now() + PATIENCE;
    let mut found = false;
    loop {
        let living = find();
        if living.is_empty() {
            return found;
        }
        found = true;
        // All at once: while one is waited for, another must not go on.
        for process in &living {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        for process in &living {
            has_ended(process, until.saturating_duration_since(Instant::now()));
        }
        if Instant::now() >= until {
            return found;
        }
    }
}

/// The processes of a list that have not ended and serve nobody else, each by a handle that stays its own when its number
/// is given to another process.
fn living(list: impl Fn() -> Vec<Pid>) -> Vec<OwnedFd> {
    let open = |process: Pid| Some((process, pidfd_open(process, PidfdFlags::empty()).ok()?));
    let opened: Vec<(Pid, OwnedFd)> = list().into_iter().filter_map(open).collect();
    if opened.is_empty() {
        return Vec::new();
    }
    // A number that is still listed was so when it was opened.
    let still = list();
    let listed = opened.into_iter().filter(|(process, _)| still.contains(process) && !is_server(*process));
    listed.map(|(_, handle)| handle).filter(|handle| !has_ended(handle, Duration::ZERO)).collect()
}

/// The children of all threads of a process.
fn children(process: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let numbers = |list: String| list.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    lists.flat_map::<Vec<i32>, _>(numbers).filter_map(Pid::from_raw).collect()
}

/// The processes with this entry in their environment.
fn marked(entry: &[u8]) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let has_mark = |process: &Pid| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == entry)
    };
    processes.filter_map(Pid::from_raw).filter(has_mark).collect()
}

/// Whether a process listens on a socket that others can connect to.
fn is_server(process: Pid) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    let inode = |target: &str| target.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned);
    let sockets: Vec<String> = targets.filter_map(|target| inode(target.to_str()?)).collect();
    // proc(5): the columns of the state of a socket, which means "listening", and of its inode.
    [("unix", 3, "00010000", 6), ("tcp", 3, "0A", 9), ("tcp6", 3, "0A", 9)].into_iter().any(
        |(file, state, listening, inode)| {
            !sockets.is_empty()
                && fs::read_to_string(format!("/proc/{process}/net/{file}")).unwrap_or_default().lines().any(
                    |line| {
                        let columns: Vec<&str> = line.split_whitespace().collect();
                        columns.get(state) == Some(&listening)
                            && columns.get(inode).is_some_and(|inode| sockets.iter().any(|own| own == inode))
                    },
                )
        },
    )
}

/// Whether the numbers in `/proc` are those of the caller's namespace of processes.
fn is_proc_ours() -> bool {
    let own = fs::read_link("/proc/self").ok();
    own.is_some_and(|own| own.to_str() == Some(getpid().to_string().as_str()))
}

/// Whether all threads of a process end within this time; they also have when nobody has waited for it yet.
fn has_ended(process: &OwnedFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).unwrap_or_default();
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&within)).is_ok_and(|ready| ready > 0)
}

//! The processes that an IPAM plugin started, however they detached themselves: a process group ends with `setsid(2)`, the
//! line of descent does not. Read from `/proc`, where kernels without `CONFIG_PROC_CHILDREN` list none.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use std::fs;
use std::time::{Duration, Instant};

/// How long the end of killed processes is waited for. One that the kernel holds ends later.
const PATIENCE: Duration = Duration::from_secs(2);

/// Kills every living descendant of a process, which is the one that orphans among them are given to: the children of a
/// child that ends are its own children then, so it is enough to kill those until there are none.
pub(super) fn end(root: Pid) {
    if !is_proc_ours() {
        return;
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let living = living_children(root);
        if living.is_empty() {
            return;
        }
        // All at once: while one is waited for, another must not go on.
        for process in &living {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        for process in &living {
            has_ended(process, until.saturating_duration_since(Instant::now()));
        }
        if Instant::now() >= until {
            return;
        }
    }
}

/// The children that have not ended, each by a handle that stays its own when its number is given to another process.
fn living_children(root: Pid) -> Vec<OwnedFd> {
    let open = |child: Pid| Some((child, pidfd_open(child, PidfdFlags::empty()).ok()?));
    let opened: Vec<(Pid, OwnedFd)> = children(root).into_iter().filter_map(open).collect();
    // A number that is still that of a child was so when it was opened.
    let still = children(root);
    let of_child = opened.into_iter().filter(|(child, _)| still.contains(child));
    of_child.map(|(_, handle)| handle).filter(|handle| !has_ended(handle, Duration::ZERO)).collect()
}

/// The children of all threads of a process.
fn children(process: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let numbers = |list: String| list.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    lists.flat_map::<Vec<i32>, _>(numbers).filter_map(Pid::from_raw).collect()
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

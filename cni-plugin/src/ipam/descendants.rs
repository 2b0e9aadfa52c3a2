//! The processes that an IPAM plugin started, however they detached themselves: a process group ends with `setsid(2)`, the
//! line of descent does not. Read from `/proc`, where kernels without `CONFIG_PROC_CHILDREN` list none.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs;

/// How often processes are listed that start others while they are being killed.
const ROUNDS: u32 = 100;

/// How long the end of a killed process is waited for, in seconds. One that the kernel holds ends later.
const PATIENCE: i64 = 1;

/// Kills every living descendant of a process, which is the one that orphans among them are given to.
pub(super) fn end(root: Pid) {
    for _ in 0..ROUNDS {
        let living: Vec<Pid> = all(root).into_iter().filter(|process| is_alive(*process)).collect();
        if living.is_empty() {
            return;
        }
        for process in living {
            // Opened first: the number of a process that has ended may be given to another one.
            let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { continue };
            if kill_process(process, Signal::KILL).is_ok() {
                let patience = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
                let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&patience));
            }
        }
    }
}

fn all(root: Pid) -> Vec<Pid> {
    let mut found = children(root);
    let mut next = 0;
    while let Some(process) = found.get(next).copied() {
        found.extend(children(process));
        next += 1;
    }
    found
}

/// The children of all threads of a process.
fn children(process: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let numbers = |list: String| list.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    lists.flat_map::<Vec<i32>, _>(numbers).filter_map(Pid::from_raw).collect()
}

/// Whether a process has not ended; one that nobody has waited for yet has.
fn is_alive(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before the state is in parentheses, and may contain some.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

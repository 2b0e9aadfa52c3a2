//! The parent process: starts the worker, and again within milliseconds when it dies. It does nothing else, so that
//! nothing else can end it: pods that are admitted while no worker is registered fail for good.

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// The environment variable that makes the program a worker: the parent's process ID.
pub const PARENT: &str = "MACVTAP_NODE_AGENT_PARENT";

/// The environment variable of every worker but the first.
const LATER: &str = "MACVTAP_NODE_AGENT_LATER";

/// The environment variable with the path of a file that all workers share.
const MEMORY: &str = "MACVTAP_NODE_AGENT_MEMORY";

/// What the worker calls itself, in its messages too.
const NAME: &str = "macvtap-node-agent";

/// Exit code of a worker whose configuration is wrong: starting the first one again would not help.
pub const EXIT_CONFIGURATION: u8 = 78;

/// Exit code of a command line that cannot be read.
const EXIT_USAGE: i32 = 2;

/// A worker that lived this long had registered: it did not die of itself at its start.
const SETTLED: Duration = Duration::from_millis(250);

/// This many deaths in a row are answered at once; then the wait begins here and doubles.
const QUICK_RESTARTS: u32 = 10;
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// No signals.
    #[error("wait for signals")]
    Signals(#[source] io::Error),
    /// No answer about it.
    #[error("wait for the worker")]
    Wait(#[source] io::Error),
}

/// Which of its parent's workers one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// What is wrong with the configuration now was wrong when the agent was started, and its exit reports it.
    First,
    /// It takes the place of one that served, and should serve too.
    Later,
}

impl Worker {
    /// This process.
    pub fn this() -> Self {
        if std::env::var_os(LATER).is_some() { Self::Later } else { Self::First }
    }
}

/// Returns the file in which a worker leaves what the next ones must know; it lives as long as their parent. None in a process
/// that has no such parent.
pub fn memory() -> Option<PathBuf> {
    std::env::var_os(MEMORY).map(PathBuf::from)
}

/// Runs workers with these arguments until one ends as asked, or for good.
pub fn run(arguments: &[OsString]) -> Result<ExitCode, SupervisorError> {
    // Before the first child, so that its death is not missed.
    let watched = [SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP];
    let mut signals = Signals::new(watched).map_err(SupervisorError::Signals)?;
    let memory = shared_memory();
    watch_over(&mut signals, |worker| start(arguments, worker, memory.as_ref()))
}

fn watch_over(
    signals: &mut Signals,
    mut start: impl FnMut(Worker) -> io::Result<Child>,
) -> Result<ExitCode, SupervisorError> {
    let mut failures: u32 = 0;
    let mut next = Worker::First;
    loop {
        let begun = Instant::now();
        match start(next) {
            Ok(mut worker) => {
                let (status, asked) = supervise(&mut worker, signals)?;
                if asked || is_final(status, next) {
                    return Ok(exit_code(status, asked));
                }
                next = Worker::Later;
            }
            // The node is short of memory or processes for a moment, most likely; nobody else starts the agent as soon.
            Err(error) if failures == 0 => complain(&error),
            Err(_) => {}
        }
        failures = if begun.elapsed() > SETTLED { 0 } else { failures + 1 };
        if let Some(more) = failures.checked_sub(QUICK_RESTARTS) {
            let wait = WAIT_FIRST.saturating_mul(1 << more.min(16)).min(WAIT_MAX);
            if asked_while_waiting(signals, wait) {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// To be called first in a worker: dies with its parent, also if that is gone already.
pub fn die_with_parent(parent: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(Pid::as_raw_nonzero);
    if now.is_none_or(|now| now.get() != parent) {
        return Err(io::Error::other("the parent process is gone"));
    }
    Ok(())
}

/// A file in memory that every worker inherits. Workers do without it where there is none.
fn shared_memory() -> Option<OwnedFd> {
    memfd_create("macvtap-node-agent", MemfdFlags::empty()).ok()
}

fn start(arguments: &[OsString], worker: Worker, memory: Option<&OwnedFd>) -> io::Result<Child> {
    // Also when the file was replaced meanwhile: parent and worker are of one version.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).args(arguments).env(PARENT, std::process::id().to_string());
    if let Some(memory) = memory {
        command.env(MEMORY, format!("/proc/self/fd/{}", memory.as_raw_fd()));
    }
    match worker {
        Worker::First => command.env_remove(LATER),
        Worker::Later => command.env(LATER, "1"),
    };
    command.spawn()
}

#[expect(clippy::print_stderr, reason = "the parent has no log")]
fn complain(error: &io::Error) {
    eprintln!("{NAME}: start the worker: {error}; trying again");
}

/// Waits for the end of the worker; hands on what asks for it.
fn supervise(worker: &mut Child, signals: &mut Signals) -> Result<(ExitStatus, bool), SupervisorError> {
    let mut asked = false;
    loop {
        // First: the worker may have died before its death could be signalled.
        if let Some(status) = worker.try_wait().map_err(SupervisorError::Wait)? {
            return Ok((status, asked));
        }
        for signal in signals.wait() {
            if signal == SIGCHLD || signal == SIGHUP {
                continue;
            }
            // Who asks twice does not want to wait.
            let signal = if asked { Signal::KILL } else { Signal::TERM };
            asked = true;
            let worker = i32::try_from(worker.id()).ok().and_then(Pid::from_raw);
            if let Some(worker) = worker {
                let _ = kill_process(worker, signal);
            }
        }
    }
}

fn asked_while_waiting(signals: &mut Signals, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    loop {
        if signals.pending().any(|signal| signal != SIGCHLD && signal != SIGHUP) {
            return true;
        }
        let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}

fn is_final(status: ExitStatus, worker: Worker) -> bool {
    match status.code() {
        Some(0 | EXIT_USAGE) => true,
        Some(code) => worker == Worker::First && code == i32::from(EXIT_CONFIGURATION),
        None => false,
    }
}

fn exit_code(status: ExitStatus, asked: bool) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        (None, Some(_)) if asked => ExitCode::SUCCESS,
        (None, _) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Watches over workers that end like this, one after the other; gives which they were.
    fn workers(mut ends: impl FnMut(usize) -> io::Result<i32>) -> Vec<Worker> {
        let mut signals = Signals::new([SIGCHLD]).unwrap();
        let mut started = Vec::new();
        let ended = watch_over(&mut signals, |worker| {
            started.push(worker);
            let code = ends(started.len())?;
            Command::new("sh").args(["-c", &format!("exit {code}")]).spawn()
        });
        ended.unwrap();
        started
    }

    #[test]
    fn what_a_worker_leaves_is_there_for_the_next_one() {
        let memory = shared_memory().unwrap();
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let run = |script: &str| Command::new("sh").args(["-c", script]).output().unwrap().stdout;
        assert_eq!(run(&format!("cat {path}; echo -n way > {path}")), b"");
        assert_eq!(run(&format!("cat {path}")), b"way");
    }

    #[test]
    fn a_worker_that_cannot_be_started_is_tried_again() {
        let short = rustix::io::Errno::AGAIN;
        let tries = |count| if count < 12 { Err(io::Error::from(short)) } else { Ok(0) };
        assert_eq!(workers(tries), [Worker::First; 12]);
    }

    #[test]
    fn a_wrong_configuration_is_the_end_of_the_first_worker_and_of_no_later_one() {
        assert_eq!(workers(|_| Ok(78)), [Worker::First]);
        let codes = [1, 78, 78, 2];
        let started = workers(|count| Ok(codes[count - 1]));
        assert_eq!(started, [Worker::First, Worker::Later, Worker::Later, Worker::Later]);
    }
}

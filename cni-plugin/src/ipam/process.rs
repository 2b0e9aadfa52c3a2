//! Running another plugin: standard input in, two outputs back, within a time limit.
//!
//! Nothing may be leased that nobody knows of. A plugin that a runtime kills in the middle of an ADD leaves its IPAM
//! plugin running, which would lease after the DEL; and a plugin that is a wrapper leaves its children. So the plugin is
//! started by [`supervise`](super::supervisor::supervise), this program again, which leads a process group and adopts the
//! plugin's orphans, and ends all of them when its parent dies or the plugin fails. No step needs a thread, so none can fail to start.

use super::descendants::{self, Process};
use super::supervisor;
use crate::protocol::environment::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process_group, pidfd_open,
    set_child_subreaper, waitid,
};
use signal_hook::consts::SIGCHLD;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// A result is a few kilobytes.
const OUTPUT_MAX: usize = 1 << 20;

/// What a plugin answered.
#[derive(Debug)]
pub(super) struct Output {
    /// Whether it ended with 0.
    pub(super) success: bool,
    /// Whether processes that it started go on after it succeeded.
    pub(super) has_left: bool,
    /// Those of them that an ADD can distinguish.
    pub(super) left: Vec<Process>,
    /// How it ended, for a person.
    pub(super) status: ExitStatus,
    /// A result, or an error.
    pub(super) stdout: Vec<u8>,
    /// What it logged.
    pub(super) stderr: String,
}

/// A plugin could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("start {}", path.display())]
    Start {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("wait for {}", path.display())]
    Wait {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the answer of {} is longer than {OUTPUT_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    #[error("{} did not end in time and was killed (ipamTimeoutSeconds in the node's cni.json)", .0.display())]
    Timeout(PathBuf),
}

/// Runs the plugin with our environment, another command, these variables and this input.
pub(super) fn run(
    path: &Path,
    command: &str,
    variables: &[(&str, OsString)],
    input: &[u8],
    deadline: Instant,
) -> Result<Output, RunError> {
    let mut group = Group::start(path, command, variables)?;
    match exchange(&mut group, command, input, deadline) {
        Ok(Some((stdout, stderr))) if stdout.len() <= OUTPUT_MAX => {
            let status = group.end().map_err(|source| RunError::Wait { path: path.to_owned(), source })?;
            let stderr = String::from_utf8_lossy(&stderr).into_owned();
            let has_left = status.code() == Some(i32::from(supervisor::HAS_LEFT));
            let left = if has_left { descendants::adopted() } else { Vec::new() };
            Ok(Output { success: status.success() || has_left, has_left, left, status, stdout, stderr })
        }
        Ok(Some(_)) => Err(RunError::TooLong(path.to_owned())),
        Ok(None) => Err(RunError::Timeout(path.to_owned())),
        Err(source) => Err(RunError::Wait { path: path.to_owned(), source }),
    }
}

/// The plugin's process group. Dropped before its leader ended well, it ends every process in it.
struct Group {
    leader: Child,
    process: OwnedFd,
    is_done: bool,
}

impl Group {
    fn start(path: &Path, command: &str, variables: &[(&str, OsString)]) -> Result<Self, RunError> {
        let mut program = Command::new(supervisor::PROGRAM);
        if command == "DEL" && !are_arguments_readable() {
            // Plugins refuse them as ADD does here, and a pod must be able to go.
            program.env_remove("CNI_ARGS");
        }
        if command == "ADD" {
            // What the plugin leaves behind becomes a child of this process when the supervisor ends, and so is found. A
            // kernel that refuses it leaves the mark to find it by.
            let _ = set_child_subreaper(Some(getpid()));
        }
        // A caller that ignores it leaves no exit status to wait for. What has a handler is the default again in the child.
        let _ = signal_hook::flag::register(SIGCHLD, Arc::default());
        let leader = program
            .arg(supervisor::VERB)
            .arg(std::process::id().to_string())
            .arg(supervisor::callers_mask())
            .arg(path)
            .env("CNI_COMMAND", command)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut leader = leader.map_err(|source| RunError::Start { path: path.to_owned(), source })?;
        match pid(&leader).and_then(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Ok(process) => Ok(Self { leader, process, is_done: false }),
            Err(errno) => {
                kill(&mut leader);
                Err(RunError::Wait { path: path.to_owned(), source: errno.into() })
            }
        }
    }

    /// How the leader ended. Of a plugin that failed nothing goes on; what a successful one left behind may be a daemon.
    fn end(mut self) -> io::Result<ExitStatus> {
        // Not waited for yet: as long as it is not, no other group can have its number.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let ended = waitid(WaitId::PidFd(self.process.as_fd()), options)?;
        let code = ended.and_then(|status| status.exit_status());
        if ![Some(0), Some(i32::from(supervisor::HAS_LEFT))].contains(&code) {
            kill(&mut self.leader);
        }
        self.is_done = true;
        // The status of a process that was waited for is remembered.
        self.leader.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_done {
            kill(&mut self.leader);
        }
    }
}

fn are_arguments_readable() -> bool {
    let arguments = std::env::var_os("CNI_ARGS");
    arguments.is_none_or(|text| text.to_str().is_some_and(|text| Args::parse(text).is_ok()))
}

fn pid(leader: &Child) -> Result<Pid, Errno> {
    i32::try_from(leader.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)
}

/// Kills what the leader started, then its group, and waits for the leader, which nobody has waited for yet.
fn kill(leader: &mut Child) {
    if let Ok(pid) = pid(leader) {
        // While the leader lives: with its end nobody knows any more what it started.
        descendants::end(pid);
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = leader.wait();
}

/// Writes the input and reads both outputs until the plugin has ended and its answer is whole; none after the deadline.
fn exchange(
    group: &mut Group,
    command: &str,
    input: &[u8],
    deadline: Instant,
) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut stdin = group.leader.stdin.take().map(|pipe| Pipe::new(pipe.into())).transpose()?;
    let mut stdout = group.leader.stdout.take().map(|pipe| Pipe::new(pipe.into())).transpose()?;
    let mut stderr = group.leader.stderr.take().map(|pipe| Pipe::new(pipe.into())).transpose()?;
    let (mut rest, mut answer, mut log) = (input, Vec::new(), Vec::new());
    let mut ended = false;
    loop {
        if stdin.as_mut().is_none_or(|pipe| pipe.write(&mut rest)) {
            stdin = None;
        }
        if stdout.as_mut().is_none_or(|pipe| pipe.read(&mut answer)) {
            stdout = None;
        }
        if stderr.as_mut().is_none_or(|pipe| pipe.read(&mut log)) {
            stderr = None;
        }
        // A process that the plugin left behind may hold its outputs open; a whole answer does not wait for it.
        let whole = || stdout.is_none() || is_whole(&answer, command);
        if ended && whole() {
            return Ok(Some((answer, log)));
        }
        let mut sources = Vec::with_capacity(4);
        let inputs = [stdout.as_ref(), stderr.as_ref()].into_iter().flatten();
        sources.extend(inputs.map(|pipe| PollFd::new(&pipe.0, PollFlags::IN)));
        sources.extend(stdin.as_ref().map(|pipe| PollFd::new(&pipe.0, PollFlags::OUT)));
        if !ended {
            sources.push(PollFd::new(&group.process, PollFlags::IN));
        }
        if !wait(&mut sources, deadline)? {
            return Ok(None);
        }
        drop(sources);
        // Looked at before the outputs are read again: what it wrote before its end is then among it.
        ended = ended || !wait_not(&group.process)?;
    }
}

/// Whether nothing is missing of an answer. Only an ADD must have one.
fn is_whole(answer: &[u8], command: &str) -> bool {
    let is_silent = answer.iter().all(u8::is_ascii_whitespace);
    (is_silent && command != "ADD") || serde_json::from_slice::<serde::de::IgnoredAny>(answer).is_ok()
}

/// Waits until one of them is ready; false at the deadline.
fn wait(sources: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(sources, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the process has not ended.
fn wait_not(process: &OwnedFd) -> io::Result<bool> {
    let now = Instant::now();
    wait(&mut [PollFd::new(process, PollFlags::IN)], now).map(|ended| !ended)
}

/// One of our ends of the plugin's three pipes.
struct Pipe(File);

impl Pipe {
    fn new(end: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(end.as_fd())?;
        fcntl_setfl(end.as_fd(), flags | OFlags::NONBLOCK)?;
        Ok(Self(end.into()))
    }

    /// Writes what the pipe takes; true when all is written, or nobody reads it. A plugin may ignore its input.
    fn write(&mut self, rest: &mut &[u8]) -> bool {
        while !rest.is_empty() {
            match self.0.write(rest) {
                Ok(written) => *rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// Reads what is there; true at the end, at an error, or when it is too much.
    fn read(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 16 << 10];
        while bytes.len() <= OUTPUT_MAX {
            match self.0.read(&mut buffer) {
                Ok(0) => return true,
                Ok(length) => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

//! The process between this plugin and an IPAM plugin: it ends the IPAM plugin, with all of its processes, when the call
//! that started it dies. A runtime kills a plugin that takes too long, and kills nothing else.

use super::descendants;
use crate::protocol::error::{CniError, Code};
use crate::protocol::version::Version;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process, kill_process_group, pidfd_open,
    set_child_subreaper, umask,
};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// This program, wherever it is installed and whether or not its file was exchanged meanwhile (proc(5)).
pub(super) const PROGRAM: &str = "/proc/self/exe";

/// The first argument that makes this program a supervisor. Runtimes start plugins without arguments.
pub(super) const VERB: &str = "supervise";

/// The exit code for a plugin that succeeded, while processes that it started go on.
pub(super) const HAS_LEFT: u8 = 113;

/// The error code, which no plugin has, for a plugin that cannot be started now or later.
pub(super) const NOT_STARTED: u32 = 199;

/// A plugin that is being installed can be busy for a moment.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// The mask that the caller set, which is the IPAM plugins'.
static CALLERS_MASK: OnceLock<Mode> = OnceLock::new();

/// Keeps the mask that the caller set for IPAM plugins.
pub fn keep_mask(callers: Mode) {
    CALLERS_MASK.get_or_init(|| callers);
}

/// Returns the argument that passes the caller's mask on to the supervisor.
pub(super) fn callers_mask() -> String {
    CALLERS_MASK.get().map_or(0o022, Mode::bits).to_string()
}

/// Serves `supervise <parent's process ID> <mask> <plugin>`; none when the arguments ask for nothing of the kind. Standard
/// input and outputs are the plugin's.
pub fn supervise(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    arguments.next().filter(|verb| verb == VERB)?;
    let parent = arguments.next().and_then(|text| text.to_str()?.parse().ok()).and_then(Pid::from_raw)?;
    let mask = arguments.next().and_then(|text| text.to_str()?.parse().ok()).map(Mode::from_bits_truncate)?;
    let plugin = arguments.next()?;
    umask(mask);
    Some(match run(parent, &plugin) {
        Ok(status) if status.success() && descendants::has_left(getpid()) => ExitCode::from(HAS_LEFT),
        Ok(status) => exit_like(status),
        Err(error) => {
            let code = match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Code::TryAgain as u32,
                _ => NOT_STARTED,
            };
            let message = format!("start {}: {error}", plugin.display());
            // Nobody reads it when the parent is dead.
            let error = CniError { code, ..CniError::new(Code::Ipam, message) };
            let _ = writeln!(io::stdout(), "{}", error.to_json(Version::NEWEST));
            ExitCode::FAILURE
        }
    })
}

fn run(parent: Pid, plugin: &OsStr) -> io::Result<ExitStatus> {
    let parent_process = match pidfd_open(parent, PidfdFlags::empty()) {
        // The number may have been given to another process before it was looked at, but then the parent has changed.
        Ok(process) if getppid() == Some(parent) => process,
        Ok(_) | Err(Errno::SRCH) => end_group()?,
        Err(errno) => return Err(errno.into()),
    };
    // An orphan among the plugin's processes becomes a child of this one, where it is found.
    set_child_subreaper(Some(getpid()))?;
    let mut child = start(plugin)?;
    let child_process = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
    let child_process = child_process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let child_process = match child_process {
        Ok(process) => process,
        Err(errno) => {
            let _ = child.kill().and_then(|()| child.wait());
            return Err(errno.into());
        }
    };
    watch(&mut child, &child_process, &parent_process)
}

/// Waits for the end of the plugin or of the parent, whichever comes first.
fn watch(child: &mut Child, child_process: &OwnedFd, parent: &OwnedFd) -> io::Result<ExitStatus> {
    loop {
        let mut sources = [PollFd::new(child_process, PollFlags::IN), PollFd::new(parent, PollFlags::IN)];
        match poll(&mut sources, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [plugin, parent] = sources.map(|source| !source.revents().is_empty());
        if parent {
            end_group()?;
        }
        if plugin {
            let status = child.wait()?;
            if !status.success() {
                // What a plugin that succeeded left behind is judged when its addresses are released; of one that failed
                // nothing goes on.
                descendants::end(getpid());
            }
            return Ok(status);
        }
    }
}

fn start(plugin: &OsStr) -> io::Result<Child> {
    let mut tries = 0;
    loop {
        match Command::new(plugin).spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Kills what the plugin started and the process group, this process too. The group was made for the plugin, so its leader
/// is this process.
fn end_group<T>() -> io::Result<T> {
    descendants::end(getpid());
    kill_process_group(getpid(), Signal::KILL)?;
    Err(io::ErrorKind::Interrupted.into())
}

/// Ends as the plugin did, so that the caller sees what happened to it.
fn exit_like(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        // The first one may meet a handler of Rust's own, which puts the default back (library/std, stack_overflow).
        for _ in 0..2 {
            let _ = kill_process(getpid(), signal);
        }
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != HAS_LEFT);
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

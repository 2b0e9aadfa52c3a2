//! Running another plugin: standard input in, two outputs back, within a time.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// A result is a few kilobytes.
const OUTPUT_MAX: u64 = 1 << 20;

/// A plugin that is being installed can be busy for a moment.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What a plugin said.
#[derive(Debug)]
pub(super) struct Output {
    /// Whether it ended with 0.
    pub(super) success: bool,
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

/// Runs the plugin with our environment, another command and this input.
pub(super) fn run(path: &Path, command: &str, input: Vec<u8>, deadline: Instant) -> Result<Output, RunError> {
    let mut child = start(path, command)?;
    let failed = |source| RunError::Wait { path: path.to_owned(), source };
    let late = || RunError::Timeout(path.to_owned());
    if let Some(mut stdin) = child.stdin.take() {
        // On a thread, since a plugin may write before it has read all. One that does not read its input ends the pipe.
        thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
    }
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    match wait_until(&mut child, deadline) {
        Ok(Some(status)) => {
            // A process that the plugin left behind may hold its outputs open.
            let rest = |output: Option<Receiver<Vec<u8>>>| match output {
                Some(output) => output.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
                None => Some(Vec::new()),
            };
            let stdout = rest(stdout).ok_or_else(late)?;
            let stderr = rest(stderr).unwrap_or_default();
            if u64::try_from(stdout.len()).is_ok_and(|length| length > OUTPUT_MAX) {
                return Err(RunError::TooLong(path.to_owned()));
            }
            Ok(Output {
                success: status.success(),
                status,
                stdout,
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            })
        }
        Ok(None) => {
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
            Err(late())
        }
        Err(source) => {
            // What it does from here on, nobody would learn.
            let _ = child.kill().and_then(|()| child.wait());
            Err(failed(source))
        }
    }
}

fn start(path: &Path, command: &str) -> Result<Child, RunError> {
    let mut tries = 0;
    loop {
        let spawned = Command::new(path)
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                thread::sleep(BUSY_PAUSE);
            }
            Err(source) => {
                return Err(RunError::Start { path: path.to_owned(), source });
            }
        }
    }
}

/// Reads an output to its end on a thread.
fn collect(output: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth more than the error.
        let _ = output.take(OUTPUT_MAX + 1).read_to_end(&mut bytes);
        // Fails when nobody waits any more.
        let _ = sender.send(bytes);
    });
    receiver
}

/// Waits for the end of the process; none when the deadline passed.
fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => return child.wait().map(Some),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn in_seconds(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    fn script(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn input_command_and_outputs_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(&dir, "echo warned >&2; echo \"$CNI_COMMAND $(cat)\"; exit 3");
        let output = run(&path, "DEL", b"input".to_vec(), in_seconds(20)).unwrap();
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_str()),
            (b"DEL input\n".as_slice(), "warned\n")
        );
        assert_eq!((output.success, output.status.code()), (false, Some(3)));
    }

    #[test]
    fn a_plugin_that_ignores_its_input_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(&dir, "exit 0");
        assert!(run(&path, "ADD", vec![b' '; 1 << 20], in_seconds(20)).unwrap().success);
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(&dir, "exec sleep 600");
        let error = run(&path, "ADD", Vec::new(), Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, RunError::Timeout(_)));
    }

    #[test]
    fn a_plugin_that_is_being_installed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        std::fs::copy("/bin/true", &path).unwrap();
        let writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let running = thread::spawn({
            let path = path.clone();
            move || run(&path, "ADD", Vec::new(), in_seconds(20))
        });
        // The kernel refuses to execute what somebody may write to; no later than that has the other thread tried.
        assert_eq!(Command::new(&path).spawn().unwrap_err().kind(), io::ErrorKind::ExecutableFileBusy);
        drop(writer);
        assert!(running.join().unwrap().unwrap().success);
    }
}

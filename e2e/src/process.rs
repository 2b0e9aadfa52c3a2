//! Processes of a cluster: started into their own session with a log file, known by pid and start time, found again
//! by a mark in their environment when every record is lost.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::LinkNameSpaceType;

use crate::{layout, wait};

/// Set in every process of a cluster to the cluster's identity.
pub const MARK: &str = "MACVTAP_CLUSTER";

/// The daemons of one cluster.
#[derive(Clone, Debug)]
pub struct Processes {
    run: PathBuf,
    logs: PathBuf,
    mark: String,
}

impl Processes {
    /// Those that keep their identity in `run`, log to `logs` and carry `mark`.
    pub fn new(run: PathBuf, logs: PathBuf, mark: &str) -> Self {
        Self { run, logs, mark: mark.to_owned() }
    }

    /// Starts `command` as daemon `name`, unless it runs. The program must not fork into the background.
    pub fn start(&self, name: &str, command: &Command) -> Result<()> {
        self.start_in(name, command, None)
    }

    /// As [`Processes::start`], in the process namespace of that file. Its pid is the one that we see: no process of ours
    /// stays between.
    pub fn start_in(&self, name: &str, command: &Command, namespace: Option<&Path>) -> Result<()> {
        if self.pid(name).is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.logs).with_context(|| format!("create {}", self.logs.display()))?;
        let log = File::options().create(true).append(true).open(self.log(name));
        let log = log.with_context(|| format!("open the log of {name}"))?;
        let mut daemon = Command::new("setsid");
        daemon.arg(command.get_program()).args(command.get_args()).env(MARK, &self.mark);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => daemon.env(key, value),
                None => daemon.env_remove(key),
            };
        }
        daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = match namespace {
            None => daemon.spawn(),
            Some(namespace) => spawn_in(&mut daemon, namespace),
        };
        let child = child.with_context(|| format!("start {name}"))?;
        let identity = Identity::of(child.id()).with_context(|| format!("{name} ended at once"))?;
        layout::write(&self.run.join(format!("{name}.pid")), identity.to_text())
    }

    /// The pid of daemon `name`, if it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.run.join(format!("{name}.pid"))).ok()?;
        let known = Identity::from_text(&text)?;
        (Identity::of(known.pid).as_ref() == Some(&known)).then_some(known.pid)
    }

    /// Fails when daemon `name` does not run, with its last words: for those who wait for what it does.
    pub fn expect_running(&self, name: &str) -> Result<()> {
        if self.pid(name).is_none() {
            bail!(wait::Hopeless(format!("{name} ended: {}", self.tail(name, 5))));
        }
        Ok(())
    }

    /// Sends `signal` and waits until the daemon is gone; kills it after `grace`.
    pub fn stop(&self, name: &str, signal: Signal, grace: Duration) -> Result<()> {
        let Some(pid) = self.pid(name) else { return Ok(()) };
        send(pid, signal);
        let gone = || Ok(self.pid(name).is_none().then_some(()));
        if wait::until("its end", grace, gone).is_err() {
            send(pid, Signal::KILL);
            wait::until(&format!("the end of {name}"), Duration::from_secs(10), gone)?;
        }
        reap(pid);
        layout::remove(&self.run.join(format!("{name}.pid")))
    }

    /// The log file of daemon `name`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The last `lines` lines of a daemon's log.
    pub fn tail(&self, name: &str, lines: usize) -> String {
        tail(&self.log(name), lines)
    }

    /// The names of all daemons that were ever started.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.run).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".pid").map(str::to_owned))
            .collect();
        names.sort();
        names
    }
}

/// Starts a process in a process namespace. The kernel gives it to the children of the thread that asks, so one thread does
/// just this.
fn spawn_in(command: &mut Command, namespace: &Path) -> std::io::Result<Child> {
    let namespace = File::open(namespace)?;
    thread::scope(|scope| {
        let child = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::ProcessID);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
            command.spawn()
        });
        child.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pid can be given to another process; together with its start time it cannot.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    pid: u32,
    start: u64,
}

impl Identity {
    /// Nothing when there is no such process, or only its zombie.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(&stat).map(|start| Self { pid, start })
    }

    fn to_text(&self) -> String {
        format!("{} {}\n", self.pid, self.start)
    }

    fn from_text(text: &str) -> Option<Self> {
        let (pid, start) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

/// The start time in `/proc/PID/stat`, nothing for a zombie. The command in it may contain blanks and brackets.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Whether a process with that pid exists and is not a zombie.
pub fn alive(pid: u32) -> bool {
    Identity::of(pid).is_some()
}

/// Sends a signal; a process that is gone is fine.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Takes the zombie of a child of ours; of a stranger there is none to take.
fn reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// The pids of all processes on the machine for which `wanted` holds, given their `/proc` directory.
pub fn find(wanted: impl Fn(&Path) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            (alive(pid) && wanted(&entry.path())).then_some(pid)
        })
        .collect()
}

/// Whether the process behind this `/proc` directory carries the mark of that cluster.
pub fn marked(proc: &Path, mark: &str) -> bool {
    let line = format!("{MARK}={mark}");
    let environment = fs::read(proc.join("environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == line.as_bytes())
}

/// Kills every process for which `wanted` holds until none is left: a process can start another one meanwhile.
pub fn kill_all(what: &str, wanted: impl Fn(&Path) -> bool) -> Result<()> {
    wait::until(&format!("the end of {what}"), Duration::from_secs(20), || {
        let left = find(&wanted);
        for pid in &left {
            send(*pid, Signal::KILL);
            reap(*pid);
        }
        Ok(left.is_empty().then_some(()))
    })
}

/// The last `lines` lines of a file, or what there is instead.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("({}: {error})", path.display()),
    };
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Takes from a `cargo` command what another cargo above us says of the crate it runs: build scripts that watch these
/// variables would run again, and everything that depends on them would be compiled again.
pub fn without_crate(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let inherited = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
        if inherited.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
}

/// Runs a command to its end and gives its standard output; a failure carries what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("run {}", line(command)))?;
    text_of(command, &out)
}

/// As [`output`], with `input` on standard input.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {}", line(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends before it has read everything says why by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let out = child.wait_with_output().with_context(|| format!("wait for {}", line(command)))?;
    text_of(command, &out)
}

fn text_of(command: &Command, out: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    let stderr = String::from_utf8_lossy(&out.stderr);
    let said = if stderr.trim().is_empty() { text.trim() } else { stderr.trim() };
    bail!("{} ended with {}: {said}", line(command), out.status)
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_command_with_brackets_and_blanks() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(parse_stat(stat), Some(4711));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        assert_eq!(parse_stat("7 (x) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"), None);
    }

    #[test]
    fn a_pid_that_was_given_to_another_process_is_not_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes::new(dir.path().join("run"), dir.path().join("logs"), "x");
        let me = Identity::of(std::process::id()).unwrap();
        layout::write(&dir.path().join("run/a.pid"), me.to_text()).unwrap();
        layout::write(&dir.path().join("run/b.pid"), format!("{} {}\n", me.pid, me.start + 1)).unwrap();
        assert_eq!(processes.pid("a"), Some(me.pid));
        assert_eq!(processes.pid("b"), None);
    }

    #[test]
    fn a_daemon_carries_the_mark_and_is_gone_after_stop() {
        let dir = tempfile::tempdir().unwrap();
        // A run of this test that failed leaves its process.
        let mark = format!("mark-of-test-{}", std::process::id());
        let processes = Processes::new(dir.path().join("run"), dir.path().join("logs"), &mark);
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        processes.start("sleep", &sleep).unwrap();
        let pid = processes.pid("sleep").unwrap();
        // Its environment shows a moment after it has begun to run.
        let found = || Ok(Some(find(|proc| marked(proc, &mark))).filter(|found| *found == [pid]));
        wait::until("the mark", Duration::from_secs(5), found).unwrap();
        processes.stop("sleep", Signal::TERM, Duration::from_secs(5)).unwrap();
        assert!(!alive(pid));
    }
}

//! What the tests break things with, and what they observe: the agent's processes, logs, changes of objects.

use crate::stage::Stage;
use anyhow::{Context, Result, bail, ensure};
use e2e::{Kubectl, Node, process};
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The agent of a node: its supervisor and the worker under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) supervisor: u32,
    pub(crate) worker: u32,
}

impl Agent {
    /// The only one that runs on the node.
    pub(crate) fn on(node: &Node) -> Result<Self> {
        let tasks = node.ctr(&["tasks", "ls"])?;
        let pids = tasks.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
        let supervisors: Vec<u32> = pids.filter(|pid| is_agent(*pid)).collect();
        let [supervisor] = supervisors[..] else {
            bail!("{} agents run on {}", supervisors.len(), node.name())
        };
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
        let worker = children.split_whitespace().next().context("the supervisor has no worker")?;
        Ok(Self { supervisor, worker: worker.parse()? })
    }

    pub(crate) fn kill_worker(self) {
        process::send(self.worker, Signal::KILL);
    }

    pub(crate) fn kill(self) {
        process::send(self.supervisor, Signal::KILL);
    }

    /// Whether it says that it serves everything it should.
    pub(crate) fn is_ready(self, node: &Node) -> bool {
        let target = self.worker.to_string();
        let probe = ["nsenter", "-t", &target, "-a", "/usr/bin/macvtap-node-agent", "probe", "ready"];
        node.exec(&probe).is_ok_and(|answer| answer.contains("ready"))
    }

    /// What the worker has open.
    pub(crate) fn descriptors(self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.worker);
        Ok(fs::read_dir(&path).with_context(|| format!("list {path}"))?.count())
    }
}

fn is_agent(pid: u32) -> bool {
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split('\0').next().is_some_and(|program| program.ends_with("macvtap-node-agent"))
}

/// A log from some moment on.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    path: PathBuf,
    from: usize,
}

impl Log {
    /// What the file will get from now on.
    pub(crate) fn from_now(path: &Path) -> Self {
        let length = fs::metadata(path).map_or(0, |found| found.len());
        Self { path: path.to_path_buf(), from: usize::try_from(length).unwrap_or(usize::MAX) }
    }

    /// A kubelet's, from now on.
    pub(crate) fn kubelet(stage: &Stage, node: &Node) -> Result<Self> {
        let processes = stage.cluster.processes().context("a local cluster has processes")?;
        Ok(Self::from_now(&processes.log(&format!("{}-kubelet", node.name()))))
    }

    /// That of the agent on a node, from now on.
    pub(crate) fn agent(node: &Node) -> Result<Self> {
        let pods = node.layout().dir().join("pods");
        let mut newest = None;
        for entry in fs::read_dir(&pods).with_context(|| format!("list {}", pods.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("macvtap-system_macvtap-node-agent-") {
                continue;
            }
            for file in fs::read_dir(entry.path().join("agent")).into_iter().flatten().flatten() {
                let changed = file.metadata().and_then(|found| found.modified()).ok();
                newest = newest.max(changed.map(|changed| (changed, file.path())));
            }
        }
        let (_, path) = newest.with_context(|| format!("no agent has a log in {}", pods.display()))?;
        Ok(Self::from_now(&path))
    }

    /// What came since.
    pub(crate) fn text(&self) -> Result<String> {
        let bytes = fs::read(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        // Shorter than before: another file of this name.
        Ok(String::from_utf8_lossy(bytes.get(self.from..).unwrap_or(&bytes)).into_owned())
    }

    /// The lines that came since and contain all of these words.
    pub(crate) fn lines(&self, words: &[&str]) -> Result<Vec<String>> {
        let text = self.text()?;
        let found = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        Ok(found.map(str::to_owned).collect())
    }

    /// Waits until such a line comes, and looks so often that the moment counts; gives how long it took since `begun`.
    pub(crate) fn moment(&self, words: &[&str], begun: Instant, deadline: Duration) -> Result<Duration> {
        loop {
            if !self.lines(words)?.is_empty() {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < deadline, "no line with {words:?} in {}", self.path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Follows what changes in objects, each change a line.
#[derive(Debug)]
pub(crate) struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    /// `resource` in the words of kubectl, `template` one of its jsonpath templates. The first lines are what there is.
    pub(crate) fn start(kubectl: &Kubectl, resource: &[&str], template: &str) -> Result<Self> {
        let mut command = kubectl.command();
        let output = format!("jsonpath={template}{{\"\\n\"}}");
        command.arg("get").args(resource).args(["--watch", "-o", &output]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("kubectl has no output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let watch = Self { child, lines: Arc::clone(&lines) };
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        e2e::wait::until("the first line of a watch", Duration::from_secs(20), || {
            Ok((!watch.lines().is_empty()).then_some(()))
        })?;
        Ok(watch)
    }

    /// Node names with what they offer of a resource, whenever a Node changes.
    pub(crate) fn offers(kubectl: &Kubectl, resource: &str) -> Result<Self> {
        let key = resource.replace('.', "\\.");
        Self::start(kubectl, &["nodes"], &format!("{{.metadata.name}} {{.status.allocatable.{key}}}"))
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails unless every Node offered `count` whenever it was written.
    pub(crate) fn offered_always(&self, count: u64) -> Result<()> {
        let lines = self.lines();
        let wanted = format!(" {count}");
        let other: Vec<_> = lines.iter().filter(|line| !line.ends_with(&wanted)).collect();
        ensure!(other.is_empty(), "offered meanwhile: {other:?} of {} changes", lines.len());
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails when the kubelet found a resource without plugin, if only for a millisecond. That of an earlier test may end
/// meanwhile: its devices are honoured for a minute after their pool.
pub(crate) fn never_unhealthy(log: &Log, resource: &str) -> Result<()> {
    let named = format!("resourceName=\"{resource}\"");
    let mut lines = log.lines(&["Mark all resources Unhealthy", &named])?;
    lines.extend(log.lines(&["Endpoint became unhealthy", &named])?);
    ensure!(lines.is_empty(), "the kubelet took {resource} for lost:\n{}", lines.join("\n"));
    Ok(())
}

/// A number below `end` that nobody can foresee.
pub(crate) fn random(end: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now()) % end
}

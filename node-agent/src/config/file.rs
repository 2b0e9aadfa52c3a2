//! A configuration file that people, or the kubelet with a new `ConfigMap`, change while the agent runs.
//!
//! What counts is what stands in the file now: the agent that serves may have started hours after it was read first.

use super::{Configuration, SourceError, save, warned};
use crate::config::standalone::{SIZE_MAX, Standalone};
use crate::process::supervisor::Worker;
use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{error, info};

/// The last good text, below the directory of the state.
const KEPT: &str = "configuration.json";

/// Looked at this often where the directory cannot be watched.
const POLL: Duration = Duration::from_secs(5);

/// Editors write in several steps; the last one counts.
const SETTLE: Duration = Duration::from_millis(50);

/// The file, and what it said when the worker started.
#[derive(Debug)]
pub struct ConfigurationFile {
    path: PathBuf,
    kept: PathBuf,
    first: Standalone,
}

impl ConfigurationFile {
    /// Reads the file. A worker whose predecessor died goes on with the last good text if there is a bad one now: nobody
    /// restarted the agent, and pods need it.
    pub(super) fn open(path: &Path, state: &Path, worker: Worker) -> Result<Self, SourceError> {
        let kept = state.join(KEPT);
        let first = match (read(path), worker) {
            (Err(problem), Worker::Later) => read(&kept).map_err(|_| problem)?,
            (first, _) => first?,
        };
        Ok(Self { path: path.to_owned(), kept, first })
    }

    /// Sends the configuration as it is now, and every good later one. A bad one changes nothing.
    pub(super) async fn follow(self, pools: mpsc::Sender<Configuration>) {
        let Self { path, kept, first } = self;
        let mut first = Some(first);
        let mut changes = Changes::of(&path);
        let mut known = None;
        loop {
            // After the watch is there: what is written from now on is an event.
            let now = content(&path).map_err(|problem| crate::error_chain(&problem));
            if known.as_ref() != Some(&now) {
                let parsed = now
                    .as_deref()
                    .map_err(Clone::clone)
                    .and_then(|text| parse(&path, text).map_err(|problem| crate::error_chain(&problem)));
                let good = parsed.is_ok();
                let next = match parsed {
                    Ok(standalone) => {
                        if first.take().is_none() {
                            info!(path = %path.display(), "configuration file read again");
                        }
                        Some(standalone)
                    }
                    Err(reason) => {
                        error!(%reason, "configuration file not usable, the last good one stays in force");
                        first.take()
                    }
                };
                if let Some(next) = next
                    && pools.send(warned(next).into()).await.is_err()
                {
                    return;
                }
                if let (true, Ok(text)) = (good, &now) {
                    save(&kept, text.clone().into_bytes()).await;
                }
                known = Some(now);
            }
            changes.next().await;
        }
    }
}

/// What happens in the file's directory, as long as that is there; a new one under its name is found by looking. Not the
/// file: a `ConfigMap` changes by a rename of a link beside it.
struct Changes {
    directory: PathBuf,
    events: Option<EventStream<[u8; 4096]>>,
}

impl Changes {
    fn of(path: &Path) -> Self {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new(".")).to_owned();
        let events = Self::watch(&directory).ok();
        Self { directory, events }
    }

    fn watch(directory: &Path) -> io::Result<EventStream<[u8; 4096]>> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE_SELF;
        inotify.watches().add(directory, mask)?;
        inotify.into_event_stream([0; 4096])
    }

    /// Waits until it is time to look at the file again.
    async fn next(&mut self) {
        let Some(events) = &mut self.events else {
            tokio::time::sleep(POLL).await;
            self.events = Self::watch(&self.directory).ok();
            return;
        };
        let gone = EventMask::MOVE_SELF | EventMask::IGNORED;
        let heard = events.next().await;
        tokio::time::sleep(SETTLE).await;
        if !heard.is_some_and(|event| event.is_ok_and(|event| !event.mask.intersects(gone))) {
            self.events = Self::watch(&self.directory).ok();
        }
    }
}

fn read(path: &Path) -> Result<Standalone, SourceError> {
    parse(path, &content(path)?)
}

fn content(path: &Path) -> Result<String, SourceError> {
    let failed = |source| SourceError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let length = file.take(SIZE_MAX as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    if length > SIZE_MAX {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Standalone, SourceError> {
    Standalone::parse(text).map_err(|source| SourceError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// Nothing here takes this long.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// A configuration of so many pools.
    fn text(pools: usize) -> String {
        let pool = |number| format!(r#"{{"name":"p{number}","lowerDevice":"l{number}"}}"#);
        format!("[{}]", (0..pools).map(pool).collect::<Vec<_>>().join(","))
    }

    struct Scene {
        root: TempDir,
    }

    impl Scene {
        /// A directory with a file of one pool in it.
        fn new() -> Self {
            let scene = Self { root: tempfile::tempdir().unwrap() };
            std::fs::create_dir(scene.path().parent().unwrap()).unwrap();
            scene.write(&text(1));
            scene
        }

        fn path(&self) -> PathBuf {
            self.root.path().join("mounted/conf")
        }

        fn write(&self, text: &str) {
            std::fs::write(self.path(), text).unwrap();
        }

        fn state(&self) -> PathBuf {
            self.root.path().join("state")
        }

        fn open(&self, worker: Worker) -> Result<ConfigurationFile, SourceError> {
            ConfigurationFile::open(&self.path(), &self.state(), worker)
        }

        /// Waits until this is the text that is kept.
        async fn kept(&self, text: &str) {
            let path = self.state().join(KEPT);
            let kept = async {
                while std::fs::read_to_string(&path).ok().as_deref() != Some(text) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(DEADLINE, kept).await.unwrap_or_else(|_| panic!("not kept in {DEADLINE:?}"));
        }
    }

    /// Serves the file; gives how many pools each configuration has.
    fn follow(file: ConfigurationFile) -> impl AsyncFnMut() -> usize {
        let (pools, mut configurations) = mpsc::channel(1);
        tokio::spawn(file.follow(pools));
        async move || {
            let next = tokio::time::timeout(DEADLINE, configurations.recv()).await;
            next.unwrap_or_else(|_| panic!("no configuration in {DEADLINE:?}")).unwrap().pools.len()
        }
    }

    #[tokio::test]
    async fn what_was_written_while_the_agent_stood_by_is_served() {
        let scene = Scene::new();
        let file = scene.open(Worker::First).unwrap();
        scene.write(&text(2));
        let mut served = follow(file);
        assert_eq!(served().await, 2);
        scene.write(&text(3));
        assert_eq!(served().await, 3);
    }

    #[tokio::test]
    async fn a_bad_text_that_was_written_while_the_agent_stood_by_changes_nothing() {
        let scene = Scene::new();
        let file = scene.open(Worker::First).unwrap();
        scene.write("[");
        let mut served = follow(file);
        assert_eq!(served().await, 1);
        scene.write(&text(2));
        assert_eq!(served().await, 2);
    }

    #[tokio::test]
    async fn a_file_is_followed_into_a_new_directory_of_its_name() {
        let scene = Scene::new();
        let mut served = follow(scene.open(Worker::First).unwrap());
        assert_eq!(served().await, 1);
        for pools in [2, 3] {
            let directory = scene.path().parent().unwrap().to_owned();
            let aside = scene.root.path().join(format!("aside{pools}"));
            // As a whole, and moved or removed: each is reported in its own way.
            if pools == 2 {
                std::fs::rename(&directory, aside).unwrap();
            } else {
                std::fs::remove_dir_all(&directory).unwrap();
            }
            std::fs::create_dir(&directory).unwrap();
            scene.write(&text(pools));
            assert_eq!(served().await, pools);
        }
        scene.write(&text(4));
        assert_eq!(served().await, 4);
    }

    #[tokio::test]
    async fn a_worker_after_the_first_goes_on_with_the_last_good_text() {
        let scene = Scene::new();
        scene.write("[");
        scene.open(Worker::Later).unwrap_err();
        scene.write(&text(2));
        let mut served = follow(scene.open(Worker::First).unwrap());
        assert_eq!(served().await, 2);
        scene.kept(&text(2)).await;
        scene.write("[");
        scene.open(Worker::First).unwrap_err();
        let mut served = follow(scene.open(Worker::Later).unwrap());
        assert_eq!(served().await, 2);
        scene.write(&text(3));
        assert_eq!(served().await, 3);
    }
}

//! A configuration file that people, or the kubelet with a new `ConfigMap`, change while the agent runs.

use super::{Configuration, SourceError, warned};
use crate::standalone::{SIZE_MAX, Standalone};
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{error, info};

/// Looked at this often where the directory cannot be watched.
const POLL: Duration = Duration::from_secs(5);

/// Editors write in several steps; the last one counts.
const SETTLE: Duration = Duration::from_millis(50);

pub(super) fn read(path: &Path) -> Result<Standalone, SourceError> {
    parse(path, &content(path)?)
}

/// Sends the configuration and every good later one. A bad one changes nothing.
pub(super) async fn follow(path: PathBuf, first: Standalone, pools: mpsc::Sender<Configuration>) {
    let mut known = content(&path).ok();
    if pools.send(first.into()).await.is_err() {
        return;
    }
    // The directory, not the file: a `ConfigMap` changes by a rename of a link beside it.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    let watched = Inotify::init().and_then(|inotify| {
        inotify.watches().add(directory, mask)?;
        inotify.into_event_stream([0; 4096])
    });
    let mut events = watched.ok();
    loop {
        match &mut events {
            Some(stream) => {
                if stream.next().await.is_none() {
                    events = None;
                }
                tokio::time::sleep(SETTLE).await;
            }
            None => tokio::time::sleep(POLL).await,
        }
        let now = content(&path);
        if now.as_ref().ok() == known.as_ref() && now.is_ok() {
            continue;
        }
        let parsed = now.and_then(|text| {
            known = Some(text.clone());
            parse(&path, &text)
        });
        match parsed {
            Ok(standalone) => {
                info!(path = %path.display(), "configuration file read again");
                if pools.send(warned(standalone).into()).await.is_err() {
                    return;
                }
            }
            Err(problem) => {
                let reason = crate::error_chain(&problem);
                error!(%reason, "configuration file not usable, the last good one stays in force");
            }
        }
    }
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

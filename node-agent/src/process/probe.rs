//! Liveness and readiness over a unix socket: `macvtap-node-agent probe` asks, the agent answers.
//!
//! Two agents share `/run/macvtap` during an upgrade. Each has its own process namespace, and so has the probe that the
//! kubelet runs in its container; that shows which process owns which socket.

use super::sockets::remove_dead;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing::warn;

/// What every agent's socket is called first.
const PREFIX: &str = "probe-";

/// The agent's answer must come within this time.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Between tries when no connection can be taken.
const RETRY: Duration = Duration::from_millis(100);

/// No answer is longer, in bytes.
const ANSWER_MAX: u64 = 4096;

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It serves everything it should.
    Ready,
    /// Another agent serves; this one waits for its end.
    Standby,
    /// Not yet, or not any more; why.
    NotReady(String),
}

/// What is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Question {
    /// Whether it answers.
    Live,
    /// Whether it serves.
    #[default]
    Ready,
}

/// The answer is no, or there is none.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No agent answers.
    #[error("ask the agent at {}; is it running in this container?", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not ready.
    #[error("not ready: {0}")]
    NotReady(String),
}

/// The socket of the agent in this process namespace.
pub fn socket(run: &Path) -> PathBuf {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let number: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    run.join(format!("{PREFIX}{number}.sock"))
}

/// Asks the agent.
pub fn ask(run: &Path, question: Question) -> Result<String, ProbeError> {
    let path = socket(run);
    let answer = || -> io::Result<String> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(match question {
            Question::Live => b"l",
            Question::Ready => b"r",
        })?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = answer().map_err(|source| ProbeError::Unreachable { path: path.clone(), source })?;
    match answer.split_once(' ') {
        Some(("ok", what)) => Ok(what.to_owned()),
        _ => Err(ProbeError::NotReady(answer.trim_start_matches("no ").to_owned())),
    }
}

/// Answers for ever.
pub async fn serve(run: PathBuf, readiness: watch::Receiver<Readiness>) {
    let path = socket(&run);
    let listener = std::fs::create_dir_all(&run).and_then(|()| {
        // Of an agent of this namespace that is gone.
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(&path)
    });
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            warn!(path = %path.display(), %error, "probes are not answered");
            return;
        }
    };
    // Of containers that were killed: each had a namespace of its own, which no later one has.
    remove_dead(&run, PREFIX).await;
    let readiness = Arc::new(readiness);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream, Arc::clone(&readiness)))),
            // Out of descriptors, most likely: at once it would fail again.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn answer(mut stream: tokio::net::UnixStream, readiness: Arc<watch::Receiver<Readiness>>) {
    let mut question = [0; 1];
    let asked = tokio::time::timeout(TIMEOUT, stream.read_exact(&mut question)).await;
    if !matches!(asked, Ok(Ok(_))) {
        return;
    }
    let state = readiness.borrow().clone();
    let answer = match (question, state) {
        ([b'l'], _) => "ok live".to_owned(),
        (_, Readiness::Ready) => "ok ready".to_owned(),
        (_, Readiness::Standby) => "ok standby".to_owned(),
        (_, Readiness::NotReady(why)) => format!("no {why}"),
    };
    let _ = stream.write_all(answer.as_bytes()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_removes_the_sockets_of_killed_ones_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let other = |name: &str| dir.path().join(name);
        drop(UnixListener::bind(other("probe-1.sock")).unwrap());
        let _alive = UnixListener::bind(other("probe-2.sock")).unwrap();
        let (_readiness, asked) = watch::channel(Readiness::Ready);
        tokio::spawn(serve(dir.path().to_owned(), asked));
        let gone = async {
            while other("probe-1.sock").exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        assert!(other("probe-2.sock").exists());
        let run = dir.path().to_owned();
        let asked = tokio::task::spawn_blocking(move || ask(&run, Question::Ready)).await.unwrap();
        assert_eq!(asked.unwrap(), "ready");
    }
}

//! The operator's executable as a process to measure.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::api_server::ACCOUNTS_NAMESPACE;
use e2e::process;

/// How long it may take to fill its caches.
const READY: Duration = Duration::from_mins(2);

/// A running operator. It ends with this value.
pub(crate) struct Operator {
    child: Child,
    listen: SocketAddr,
    started: Instant,
    log: PathBuf,
}

impl Operator {
    /// Starts one; its log goes to `log`.
    pub(crate) fn start(program: &Path, kubeconfig: &Path, log: &Path) -> Result<Self> {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        let listen = socket.local_addr()?;
        drop(socket);
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory).context("make the directory of the operator's log")?;
        }
        let file = File::options().create(true).append(true).open(log).context("open the operator's log")?;
        let started = Instant::now();
        let child = Command::new(program)
            .args(["--listen", &listen.to_string(), "--namespace", ACCOUNTS_NAMESPACE])
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start the operator")?;
        Ok(Self { child, listen, started, log: log.to_path_buf() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its caches are filled; says how long that took since its start.
    pub(crate) async fn ready(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            if answers(self.listen).unwrap_or(false) {
                return Ok(self.started.elapsed());
            }
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "the operator ended:\n{}", process::tail(&self.log, 20));
            ensure!(begun.elapsed() < READY, "the operator is not ready:\n{}", process::tail(&self.log, 20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until it leads: the lease of one that was killed before it runs for 15 seconds.
    pub(crate) async fn leads(&self) -> Result<()> {
        let begun = Instant::now();
        let is_leading = |metrics: String| metrics.lines().any(|line| line == "macvtap_operator_leading 1");
        while !get(self.listen, "/metrics").is_ok_and(is_leading) {
            ensure!(begun.elapsed() < READY, "the operator does not lead:\n{}", process::tail(&self.log, 20));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the operator")?;
        self.child.wait().context("wait for the operator's end").map(drop)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answers(address: SocketAddr) -> Result<bool> {
    Ok(get(address, "/readyz")?.split_whitespace().nth(1) == Some("200"))
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

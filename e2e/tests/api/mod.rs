//! An API server with our CRDs, for tests that need no node.

// Each test program uses a part of it.
#![allow(dead_code, reason = "shared by several test programs")]
#![allow(clippy::print_stderr, reason = "a failed test shows the program's log")]

pub(crate) mod chart;

use anyhow::{Context as _, Result};
use e2e::layout::Checkout;
use e2e::{ApiServer, Kubectl, process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// An API server with our CRDs.
pub(crate) struct Api {
    pub(crate) kubectl: Kubectl,
    /// Ends with this value.
    _server: Option<ApiServer>,
}

impl Api {
    /// The server of this test program, or that of KUBECONFIG, for tests that store nothing others could meet.
    pub(crate) fn shared() -> Result<Self> {
        // Servers end with the process at the latest.
        static SERVER: OnceLock<ApiServer> = OnceLock::new();
        static START: Mutex<()> = Mutex::new(());
        if let Some(kubeconfig) = std::env::var_os("KUBECONFIG") {
            return Self::with_crds(Kubectl::new(&Checkout::here(), &PathBuf::from(kubeconfig)), None);
        }
        let _one_at_a_time = START.lock().unwrap_or_else(PoisonError::into_inner);
        if SERVER.get().is_none() {
            let server = ApiServer::start()?;
            SERVER.get_or_init(|| server);
        }
        let server = SERVER.get().context("the server was not kept")?;
        Self::with_crds(server.kubectl().clone(), None)
    }

    /// A server of this test's own.
    pub(crate) fn own() -> Result<Self> {
        let server = ApiServer::start()?;
        Self::with_crds(server.kubectl().clone(), Some(server))
    }

    /// A server of this test's own, with the controllers that remove what belongs to objects that are gone.
    pub(crate) fn with_controllers() -> Result<Self> {
        let mut server = ApiServer::start()?;
        server.start_controllers()?;
        Self::with_crds(server.kubectl().clone(), Some(server))
    }

    /// A server of this test's own, without our CRDs.
    pub(crate) fn without_crds() -> Result<Self> {
        let server = ApiServer::start()?;
        Ok(Self { kubectl: server.kubectl().clone(), _server: Some(server) })
    }

    fn with_crds(kubectl: Kubectl, server: Option<ApiServer>) -> Result<Self> {
        let crds = Checkout::here().path("crds/yaml");
        kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", &crds.to_string_lossy()])?;
        kubectl.run(&[
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "-f",
            &crds.to_string_lossy(),
        ])?;
        Ok(Self { kubectl, _server: server })
    }

    /// Has the server judge a new object without storing it.
    pub(crate) fn create_dry(&self, object: &Value) -> Result<()> {
        self.with_input(&["create", "--dry-run=server", "-f", "-"], object)
    }

    /// Stores the object as it is, in the place of an earlier one.
    pub(crate) fn replace(&self, object: &Value) -> Result<()> {
        self.kubectl.apply(&object.to_string())
    }

    /// Stores an object that must not be there yet.
    pub(crate) fn create(&self, object: &Value) -> Result<()> {
        self.with_input(&["create", "-f", "-"], object)
    }

    /// Sets fields of a status.
    pub(crate) fn patch_status(&self, object: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        self.kubectl.run(&["patch", object, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
    }

    /// The only row that kubectl prints, by column.
    pub(crate) fn table(&self, args: &[&str]) -> Result<BTreeMap<String, String>> {
        let text = self.kubectl.run(args)?;
        let mut lines = text.lines();
        let (header, row) = lines.next().zip(lines.next()).with_context(|| format!("no table: {text}"))?;
        let starts: Vec<usize> = header
            .char_indices()
            .filter(|(i, c)| *c != ' ' && (*i == 0 || header[..*i].ends_with("  ")))
            .map(|(i, _)| i)
            .collect();
        let cell = |line: &str, n: usize| -> String {
            let end = starts.get(n + 1).copied().unwrap_or(line.len()).min(line.len());
            line.get(starts[n]..end).unwrap_or_default().trim().to_owned()
        };
        Ok((0..starts.len()).map(|n| (cell(header, n), cell(row, n))).collect())
    }

    fn with_input(&self, args: &[&str], object: &Value) -> Result<()> {
        process::output_with_input(self.kubectl.command().args(args), &object.to_string()).map(drop)
    }
}

/// A program of ours that runs as a child of the test.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
    /// Where its part of the log begins: a program that is started again appends to it.
    begins: usize,
}

impl Program {
    /// Starts a program of this workspace against the API server, with its log in a file.
    pub(crate) fn start(package: &str, args: &[&str], kubeconfig: &Path) -> Result<Self> {
        let checkout = Checkout::here();
        build(&checkout, package)?;
        let log = kubeconfig.with_file_name(format!("{package}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).context("open a log")?;
        let begins = file.metadata()?.len().try_into()?;
        let child = Command::new(checkout.path("target/debug").join(package))
            .args(args)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {package}"))?;
        Ok(Self { child, log, begins })
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it serves HTTP, as its log names it.
    pub(crate) fn address(&self) -> Result<String> {
        let log = self.log();
        let own = log.get(self.begins..).unwrap_or_default();
        let address = own.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next());
        Ok(address.context("no address in the log")?.to_owned())
    }

    /// Asks it over HTTP.
    pub(crate) fn ask(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address()?)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Asks it to end, and gives its exit code.
    pub(crate) fn terminate(mut self) -> Result<Option<i32>> {
        process::send(self.child.id(), rustix::process::Signal::TERM);
        let code =
            e2e::wait::until("the program to end", Duration::from_secs(10), || Ok(self.child.try_wait()?))?;
        Ok(code.code())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log\n{}", process::tail(&self.log, 40));
        }
    }
}

/// Builds a program of this workspace, once in the life of this test program: asking cargo again waits for whoever
/// builds something else.
pub(crate) fn build(checkout: &Checkout, package: &str) -> Result<()> {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.iter().any(|name| name == package) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-q", "--locked", "-p", package, "--target-dir"]).arg(checkout.path("target"));
        process::without_crate(&mut cargo);
        process::output(cargo.current_dir(checkout.root()).stdin(Stdio::null()))?;
        built.push(package.to_owned());
    }
    Ok(())
}

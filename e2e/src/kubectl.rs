//! kubectl as functions: what tests and the demo do with the API, against any cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::layout::Checkout;
use crate::{process, wait};

/// kubectl for one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// The kubectl built for the local cluster, or the one in PATH as long as there is none.
    pub fn new(checkout: &Checkout, kubeconfig: &Path) -> Self {
        let built = checkout.bin().join("kubectl");
        let program = if built.exists() { built } else { PathBuf::from("kubectl") };
        Self { program, kubeconfig: kubeconfig.to_path_buf() }
    }

    /// The file it reads.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A command; append what kubectl should do.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs kubectl and gives what it printed.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        process::output(self.command().args(args))
    }

    /// Applies objects, server-side: what a test wrote is exactly what the server judged.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        process::output_with_input(self.command().args(args), yaml).map(drop)
    }

    /// Applies objects and gives the server's refusal; an error when it accepted them.
    pub fn refused(&self, yaml: &str) -> Result<String> {
        match self.apply(yaml) {
            Ok(()) => anyhow::bail!("the server accepted: {yaml}"),
            Err(refusal) => Ok(format!("{refusal:#}")),
        }
    }

    /// Deletes objects and waits until they are gone; those that are not there are fine.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        let args = ["delete", "--ignore-not-found", "--wait", "--timeout=90s", "-f", "-"];
        process::output_with_input(self.command().args(args), yaml).map(drop)
    }

    /// An object, or a list of them, as JSON. `resource` is `pod/a`, `pods`, `mrp`, ...; an empty `namespace` stands for
    /// objects without one.
    pub fn get(&self, namespace: &str, resource: &str) -> Result<Value> {
        let mut command = self.command();
        if !namespace.is_empty() {
            command.args(["-n", namespace]);
        }
        let text = process::output(command.args(["get", resource, "-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("read {resource}"))
    }

    /// Waits until `look` finds what it wants in the object, and gives that. An object that does not exist (yet) is
    /// waited for.
    pub fn wait_until<T>(
        &self,
        namespace: &str,
        resource: &str,
        deadline: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut seen = Value::Null;
        let found = wait::until(&format!("{namespace}/{resource}"), deadline, || {
            seen = self.get(namespace, resource)?;
            Ok(look(&seen))
        });
        found.with_context(|| format!("last seen: {}", seen.get("status").unwrap_or(&seen)))
    }

    /// Waits for a condition in the words of `kubectl wait --for`: `condition=Ready`, `delete`, `jsonpath=...`.
    pub fn wait_for(
        &self,
        namespace: &str,
        resource: &str,
        condition: &str,
        deadline: Duration,
    ) -> Result<()> {
        if condition != "delete" {
            self.wait_until(namespace, resource, deadline, |_| Some(()))?;
        }
        let mut command = self.command();
        if !namespace.is_empty() {
            command.args(["-n", namespace]);
        }
        let timeout = format!("--timeout={}s", deadline.as_secs());
        command.args(["wait", resource, &format!("--for={condition}"), &timeout]);
        process::output(&mut command).map(drop)
    }

    /// Runs a program in a pod's first container and gives what it printed.
    pub fn exec(&self, namespace: &str, pod: &str, program: &[&str]) -> Result<String> {
        process::output(self.command().args(["-n", namespace, "exec", pod, "--"]).args(program))
    }

    /// The log of a pod's first container.
    pub fn logs(&self, namespace: &str, pod: &str) -> Result<String> {
        self.run(&["-n", namespace, "logs", pod])
    }
}

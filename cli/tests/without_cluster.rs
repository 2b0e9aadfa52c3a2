//! What the command says when it cannot find a cluster.

#![allow(
    clippy::unwrap_used,
    reason = "a command that does not start fails the test, which is what it is for"
)]

use std::process::Command;

#[test]
fn a_cluster_that_cannot_be_found_is_explained_once_and_with_a_remedy() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-macvtap"));
        command.args(args).env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        let output = command.env("HOME", "/nonexistent").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let nowhere = run(&["status"]);
    assert!(nowhere.contains("/nonexistent/.kube/config"), "{nowhere}");
    assert!(nowhere.ends_with("; set KUBECONFIG or --kubeconfig\n"), "{nowhere}");
    let named = run(&["--kubeconfig", "/nonexistent/file", "status"]);
    assert!(named.contains("/nonexistent/file"), "{named}");
    for said in [nowhere, named] {
        assert_eq!(said.matches("No such file").count(), 1, "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

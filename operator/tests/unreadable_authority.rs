//! What the executable says when it cannot find a cluster.

#![allow(clippy::unwrap_used, reason = "a missing file fails the test, which is what it is for")]

use std::process::{Command, Output};

/// Runs the operator with this certificate authority in its kubeconfig.
fn run(directory: &std::path::Path, authority: &str, args: &[&str]) -> Output {
    let kubeconfig = directory.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:1\", certificate-authority: {authority}}}}}]\n\
         users: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    // One that goes on although it should not must not hold up the test.
    let mut operator = Command::new("timeout");
    operator
        .args(["60", env!("CARGO_BIN_EXE_macvtap-operator")])
        .args(args)
        .env("KUBECONFIG", kubeconfig)
        .env("RUST_BACKTRACE", "1");
    operator.output().unwrap()
}

#[test]
fn an_authority_that_cannot_be_read_is_named_in_one_line_with_a_remedy() {
    let directory = std::env::temp_dir().join(format!("macvtap-operator-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(
        directory.join("garbled.crt"),
        "-----BEGIN CERTIFICATE-----\nMIIB!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let serve = ["--listen", "127.0.0.1:0"];
    let json = ["--listen", "127.0.0.1:0", "--log-format", "json"];
    let off = ["--listen", "127.0.0.1:0", "--log-level", "off"];
    let webhook = ["webhook", "--listen", "127.0.0.1:0"];
    let missing = directory.join("missing.crt").display().to_string();
    let garbled = directory.join("garbled.crt").display().to_string();
    let cases = [
        (&missing, &serve[..], missing.as_str()),
        (&missing, &json, &missing),
        (&missing, &off, &missing),
        (&missing, &webhook, &missing),
        (&missing, &["migrate"], &missing),
        (&garbled, &serve, "kubeconfig: failed to parse PEM-encoded certificates"),
    ];
    for (authority, args, words) in cases {
        let output = run(&directory, authority, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(words) && last.contains("set KUBECONFIG to a kubeconfig"), "{args:?}: {said}");
        for cause in ["No such file", "failed to"] {
            assert!(said.matches(cause).count() <= 2 && !said.contains("Caused by"), "{args:?}: {said}");
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

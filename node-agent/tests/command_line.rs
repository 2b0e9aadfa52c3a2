//! The program as a person starts it: what is wrong is said at once, with the remedy.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_macvtap-node-agent"));
    let dir = std::env::temp_dir();
    command.env_clear().arg("--state-dir").arg(dir.join("nobody")).arg("--run-dir").arg(dir.join("nobody"));
    command
}

fn run(command: &mut Command) -> (Output, Duration) {
    let begun = Instant::now();
    let output = command.output().unwrap();
    (output, begun.elapsed())
}

#[test]
fn a_wrong_configuration_ends_the_agent_with_a_message_that_helps() {
    for (text, parts) in [
        ("", &["DP_MACVTAP_CONF", "is empty", "[]"][..]),
        ("nonsense", &["DP_MACVTAP_CONF", "not a JSON array"]),
        (r#"[{"name":"a","lowerDevice":"b"},]"#, &["trailing comma"]),
        (r#"[{"name":"a","lower":"b"}]"#, &["entry 1 (\"a\")", "unknown key \"lower\"", "the keys are"]),
        (r#"[{"name":"a","lowerDevice":"b","mode":"passthrough"}]"#, &["mode \"passthrough\"", "passthru"]),
        (r#"[{"name":"a","lowerDevice":"b","mode":"passthru","capacity":5}]"#, &["capacity is 5", "write 1"]),
        (r#"[{"lowerDevice":"b"}]"#, &["entry 1:", "\"name\" is missing"]),
        (r#"[{"name":"a","lowerDevice":"b"},{"name":"a","lowerDevice":"c"}]"#, &["entry 2", "entry 1 too"]),
    ] {
        let (output, took) = run(agent().args(["-v", "3", "-logtostderr"]).env("DP_MACVTAP_CONF", text));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{text}: {stderr}");
        assert!(took < Duration::from_secs(2), "{text}: {took:?}");
        for part in parts {
            assert!(stderr.contains(part), "{text}: {stderr:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_and_a_command_line_that_says_nothing_are_told_too() {
    let (output, _) = run(agent().args(["--config", "/nonexistent/conf"]));
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("read /nonexistent/conf"));
    let (output, _) = run(&mut agent());
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--node-name"));
    let (output, _) = run(agent().args(["--config", "/x"]).env("DP_MACVTAP_CONF", "[]"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("keep one"));
    let (output, _) = run(agent().arg("--no-such-flag"));
    assert_eq!(output.status.code(), Some(2));
    let (output, _) = run(agent().args(["--log-level", "{"]).env("DP_MACVTAP_CONF", "[]"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--log-level"));
}

#[test]
fn a_probe_without_an_agent_fails_and_says_so() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_macvtap-node-agent"));
    let (output, _) = run(command.args(["probe", "live", "--run-dir", "/nonexistent"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it running"));
}

#[test]
fn links_can_be_listed_without_anything_else() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_macvtap-node-agent"));
    let (output, _) = run(command.args(["links", "-o", "json"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(links.as_array().unwrap().iter().any(|link| link["name"] == "lo"));
}

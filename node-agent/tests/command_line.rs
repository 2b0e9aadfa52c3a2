//! The program as a person starts it: what is wrong is said at once, with the remedy.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

use std::process::{Command, Output, Stdio};

/// The agent with these arguments and this configuration in the environment. One that serves instead of ending is ended,
/// with another exit code.
fn run(arguments: &[&str], configuration: Option<&str>) -> Output {
    let mut command = Command::new("timeout");
    command.args(["20", env!("CARGO_BIN_EXE_macvtap-node-agent")]).args(arguments);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.envs(configuration.map(|text| ("DP_MACVTAP_CONF", text)));
    command.output().unwrap()
}

/// The same with directories that nobody else has; it leaves nothing there.
fn start(arguments: &[&str], configuration: Option<&str>) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let output = run(&[&["--state-dir", path, "--run-dir", path][..], arguments].concat(), configuration);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "{arguments:?} {configuration:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
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
        let (code, stderr) = start(&["-v", "3", "-logtostderr"], Some(text));
        assert_eq!(code, Some(78), "{text}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{text}: {stderr:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_and_a_command_line_that_says_nothing_are_told_too() {
    for (arguments, configuration, exit, part) in [
        (&["--config", "/nonexistent/conf"][..], None, 78, "read /nonexistent/conf"),
        (&[], None, 78, "--node-name"),
        (&["--config", "/x"], Some("[]"), 78, "keep one"),
        (&["--no-such-flag"], None, 2, "--no-such-flag"),
        (&["--log-level", "{"], Some("[]"), 78, "--log-level"),
    ] {
        let (code, stderr) = start(arguments, configuration);
        assert_eq!(code, Some(exit), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr:?} lacks {part:?}");
    }
}

#[test]
fn a_probe_without_an_agent_fails_and_says_so() {
    let output = run(&["probe", "live", "--run-dir", "/nonexistent"], None);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it running"));
}

#[test]
fn links_can_be_listed_without_anything_else() {
    let output = run(&["links", "-o", "json"], None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(links.as_array().unwrap().iter().any(|link| link["name"] == "lo"));
}

#[test]
fn a_reader_that_leaves_early_is_not_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_macvtap-node-agent"));
    let mut links = command.arg("links").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(links.stdout.take());
    let ended = links.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

//! The environment variables of a call.

use crate::protocol::error::{CniError, Code};
use macvtap::link::IfName;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Directories whose entries mean something else in each process.
const OF_ONE_PROCESS: [&str; 3] = ["/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"];

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Look whether the attachment is as it was made.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Tell whether an ADD could be served.
    Status,
    /// Tell the versions.
    Version,
}

/// An attachment, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: IfName,
    /// `CNI_NETNS`; a DEL may come without.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: Args,
}

/// What we take from `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `MAC`.
    pub mac: Option<String>,
    /// `K8S_POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `K8S_POD_NAME`.
    pub pod_name: String,
    /// `K8S_POD_UID`.
    pub pod_uid: String,
}

/// The variables of this process, or of a test.
pub trait Variables {
    /// The value of one variable; none when it is unset.
    fn get(&self, name: &str) -> Option<OsString>;
}

/// The process's own.
#[derive(Clone, Copy, Debug)]
pub struct ProcessVariables;

impl Variables for ProcessVariables {
    fn get(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }
}

impl Command {
    /// Its name in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// From `CNI_COMMAND`.
    pub fn read(variables: &impl Variables) -> Result<Self, CniError> {
        let all = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];
        let text = required(variables, "CNI_COMMAND")?;
        all.into_iter()
            .find(|command| command.as_str() == text)
            .ok_or_else(|| invalid("CNI_COMMAND", &text, "use ADD, DEL, CHECK, GC, STATUS or VERSION"))
    }

    /// Whether the call is about one attachment.
    pub fn has_attachment(self) -> bool {
        match self {
            Self::Add | Self::Del | Self::Check => true,
            Self::Gc | Self::Status | Self::Version => false,
        }
    }
}

impl Attachment {
    /// Whether a DEL is about an interface that can never have been: no link has such a name, and an ADD was refused.
    pub fn cannot_exist(command: Command, variables: &impl Variables) -> bool {
        let name = text(variables, "CNI_IFNAME").ok().flatten().filter(|name| !name.is_empty());
        command == Command::Del && name.is_some_and(|name| name.parse::<IfName>().is_err())
    }

    /// From `CNI_CONTAINERID`, `CNI_IFNAME`, `CNI_NETNS` and `CNI_ARGS`.
    pub fn read(command: Command, variables: &impl Variables) -> Result<Self, CniError> {
        let container_id = required(variables, "CNI_CONTAINERID")?;
        if !is_container_id(&container_id) {
            let remedy = "use letters, digits, '_', '.' and '-', beginning with a letter or digit";
            return Err(invalid("CNI_CONTAINERID", &container_id, remedy));
        }
        let ifname = required(variables, "CNI_IFNAME")?;
        let ifname = ifname.parse().map_err(|_| {
            let remedy = "use 1 to 15 characters without '/', ':' and white space";
            invalid("CNI_IFNAME", &ifname, remedy)
        })?;
        let netns = netns(command, variables)?;
        if netns.is_none() && command != Command::Del {
            return Err(missing("CNI_NETNS"));
        }
        let args = match text(variables, "CNI_ARGS")? {
            Some(text) => Args::parse(&text)?,
            None => Args::default(),
        };
        Ok(Self { container_id, ifname, netns, args })
    }

    /// The namespace; every command but DEL has one.
    pub fn required_netns(&self) -> Result<&Path, CniError> {
        self.netns.as_deref().ok_or_else(|| missing("CNI_NETNS"))
    }
}

impl Args {
    /// `KEY=VALUE` pairs with `;` between them. A key nobody here knows is an error unless `IgnoreUnknown` says otherwise.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        let (mut unknown, mut ignore_unknown) = (Vec::new(), false);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| invalid("CNI_ARGS", pair, "write KEY=VALUE, with ';' between pairs"))?;
            match key {
                "MAC" => args.mac = Some(value.to_owned()).filter(|mac| !mac.is_empty()),
                "K8S_POD_NAMESPACE" => value.clone_into(&mut args.pod_namespace),
                "K8S_POD_NAME" => value.clone_into(&mut args.pod_name),
                "K8S_POD_UID" => value.clone_into(&mut args.pod_uid),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IgnoreUnknown" => ignore_unknown = boolean(value)?,
                _ => unknown.push(pair),
            }
        }
        if let (false, Some(first)) = (ignore_unknown, unknown.first()) {
            return Err(invalid(
                "CNI_ARGS",
                first,
                "this key is not known here; remove it or add IgnoreUnknown=1",
            ));
        }
        Ok(args)
    }
}

/// `CNI_NETNS` as an absolute path: it is kept in the record, for processes with another working directory.
fn netns(command: Command, variables: &impl Variables) -> Result<Option<PathBuf>, CniError> {
    let Some(given) = variables.get("CNI_NETNS").filter(|path| !path.is_empty()) else { return Ok(None) };
    let path = PathBuf::from(&given);
    // Later plugins compare the text with their own CNI_NETNS, so an absolute path stays as it is.
    let path = if path.is_absolute() { path } else { std::path::absolute(&path).unwrap_or(path) };
    // The record would name a descriptor of whatever process reads it.
    let is_of_one_process = OF_ONE_PROCESS.iter().any(|prefix| path.starts_with(prefix));
    if is_of_one_process && command != Command::Del {
        let remedy = "this is a descriptor of one process; give a path such as /run/netns/<name> or /proc/<pid>/ns/net";
        return Err(invalid("CNI_NETNS", &given.to_string_lossy(), remedy));
    }
    Ok(Some(path))
}

fn boolean(value: &str) -> Result<bool, CniError> {
    match value {
        "1" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err(invalid("CNI_ARGS", &format!("IgnoreUnknown={value}"), "use 1 or 0")),
    }
}

fn is_container_id(text: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.bytes().all(valid) && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn text(variables: &impl Variables, name: &str) -> Result<Option<String>, CniError> {
    let value = variables.get(name).map(OsString::into_string).transpose();
    value.map_err(|raw| invalid(name, &raw.to_string_lossy(), "write it in UTF-8"))
}

fn required(variables: &impl Variables, name: &str) -> Result<String, CniError> {
    text(variables, name)?.filter(|value| !value.is_empty()).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> CniError {
    CniError::new(
        Code::Environment,
        format!("environment variable {name} is not set; the container runtime sets it"),
    )
}

fn invalid(name: &str, value: &str, remedy: &str) -> CniError {
    CniError::new(Code::Environment, format!("environment variable {name} is {value:?}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    impl Variables for BTreeMap<&str, &str> {
        fn get(&self, name: &str) -> Option<OsString> {
            BTreeMap::get(self, name).map(OsString::from)
        }
    }

    fn complete() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "net1"),
            ("CNI_NETNS", "/run/netns/x"),
        ])
    }

    #[test]
    fn each_variable_that_is_missing_or_wrong_is_named() {
        for (name, value) in [
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "sixteencharacter"),
            ("CNI_NETNS", ""),
            ("CNI_NETNS", "/proc/self/fd/3"),
            ("CNI_NETNS", "/dev/fd/3"),
            ("CNI_ARGS", "FOO=bar"),
            ("CNI_ARGS", "MAC"),
            ("CNI_ARGS", "IgnoreUnknown=perhaps"),
        ] {
            let mut variables = complete();
            variables.insert(name, value);
            let error = Attachment::read(Command::Add, &variables).unwrap_err();
            assert_eq!(error.code, 4, "{name}={value}");
            assert!(error.message.contains(name), "{}", error.message);
        }
        let mut variables = complete();
        variables.insert("CNI_COMMAND", "add");
        assert_eq!(Command::read(&variables).unwrap_err().code, 4);
    }

    #[test]
    fn a_del_of_what_has_no_possible_name_has_nothing_to_do() {
        let cannot_exist = |command, name| {
            let mut variables = complete();
            variables.insert("CNI_IFNAME", name);
            Attachment::cannot_exist(command, &variables)
        };
        assert!(cannot_exist(Command::Del, "a\u{1}") && cannot_exist(Command::Del, "sixteencharacter"));
        assert!(!cannot_exist(Command::Del, "net1") && !cannot_exist(Command::Del, ""));
        assert!(!cannot_exist(Command::Add, "a\u{1}"));
    }

    #[test]
    fn a_relative_namespace_is_that_of_the_working_directory() {
        let mut variables = complete();
        for (given, read) in [
            ("netns/x", std::env::current_dir().unwrap().join("netns/x")),
            ("/var/run/netns//x", "/var/run/netns//x".into()),
            ("/proc/7/ns/net", "/proc/7/ns/net".into()),
        ] {
            variables.insert("CNI_NETNS", given);
            assert_eq!(Attachment::read(Command::Add, &variables).unwrap().netns, Some(read));
        }
    }

    #[test]
    fn only_a_del_may_come_without_a_namespace() {
        let mut variables = complete();
        variables.remove("CNI_NETNS");
        assert!(Attachment::read(Command::Del, &variables).is_ok());
        assert!(Attachment::read(Command::Add, &variables).is_err());
        assert!(Attachment::read(Command::Check, &variables).is_err());
    }

    #[test]
    fn unknown_arguments_are_ignored_when_they_say_so_wherever() {
        for text in [
            "FOO=bar;IgnoreUnknown=1;MAC=02:00:00:00:00:01",
            "IgnoreUnknown=true;MAC=02:00:00:00:00:01;A=b=c;",
        ] {
            assert_eq!(Args::parse(text).unwrap().mac.as_deref(), Some("02:00:00:00:00:01"));
        }
        assert!(Args::parse("IgnoreUnknown=0;FOO=bar").is_err());
        assert_eq!(Args::parse("MAC=").unwrap().mac, None);
    }

    proptest! {
        #[test]
        fn no_arguments_make_the_parser_panic(text in "\\PC{0,60}|([A-Za-z_]{0,10}[=;]?){0,8}") {
            let _ = Args::parse(&text);
        }
    }
}

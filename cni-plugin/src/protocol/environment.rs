//! The environment variables of a call.

use crate::protocol::error::{CniError, Code};
use macvtap::link::IfName;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Whether a path names a descriptor of one process: `/dev/fd/N`, `/proc/<process>/fd/N`, `/proc/<process>/task/<thread>/fd/N`.
fn is_descriptor(path: &Path) -> bool {
    let in_proc = path.strip_prefix("/proc").is_ok_and(|rest| rest.iter().any(|part| part == "fd"));
    in_proc || path.starts_with("/dev/fd")
}

/// What the runtime asks for, with everything that it must name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add(Attachment),
    /// Detach.
    Del(Deletion),
    /// Compare the attachment with what ADD made.
    Check(Attachment),
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Report whether an ADD could be served.
    Status,
    /// Report the supported versions.
    Version,
}

/// An attachment, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment<N = PathBuf> {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: IfName,
    /// `CNI_NETNS`.
    pub netns: N,
    /// `CNI_ARGS`.
    pub args: Args,
}

/// An attachment that may have lost its namespace.
pub type Deletion = Attachment<Option<PathBuf>>;

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
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Del(_) => "DEL",
            Self::Check(_) => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Reads the environment. None is a DEL of an attachment that can never have existed: its ADD was refused for the name
    /// of the container or of the interface.
    pub fn read(variables: &impl Variables) -> Result<Option<Self>, CniError> {
        Ok(Some(match required(variables, "CNI_COMMAND")?.as_str() {
            "ADD" => Self::Add(Attachment::in_sandbox(variables)?),
            "DEL" if names_nothing(variables) => return Ok(None),
            "DEL" => Self::Del(Deletion::read(variables)?),
            "CHECK" => Self::Check(Attachment::in_sandbox(variables)?),
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                return Err(invalid("CNI_COMMAND", other, "use ADD, DEL, CHECK, GC, STATUS or VERSION"));
            }
        }))
    }

    /// The container and the interface of a call that is about one attachment.
    pub fn subject(&self) -> Option<(&str, &IfName)> {
        match self {
            Self::Add(attachment) | Self::Check(attachment) => {
                Some((&attachment.container_id, &attachment.ifname))
            }
            Self::Del(deletion) => Some((&deletion.container_id, &deletion.ifname)),
            Self::Gc | Self::Status | Self::Version => None,
        }
    }
}

fn names_nothing(variables: &impl Variables) -> bool {
    let refused = |name, is_valid: fn(&str) -> bool| match text(variables, name) {
        Ok(value) => value.is_some_and(|value| !value.is_empty() && !is_valid(&value)),
        Err(_) => true,
    };
    refused("CNI_IFNAME", |name| interface(name).is_some()) || refused("CNI_CONTAINERID", is_container_id)
}

impl Attachment {
    /// From `CNI_CONTAINERID`, `CNI_IFNAME`, `CNI_NETNS` and `CNI_ARGS`.
    fn in_sandbox(variables: &impl Variables) -> Result<Self, CniError> {
        let Attachment { container_id, ifname, netns, .. } = Deletion::read(variables)?;
        let netns = netns.ok_or_else(|| missing("CNI_NETNS"))?;
        // The record would name a descriptor of whatever process reads it.
        if is_descriptor(&netns) {
            let remedy = "this is a descriptor of one process; give a path such as /run/netns/<name> or /proc/<pid>/ns/net";
            return Err(invalid("CNI_NETNS", &netns.to_string_lossy(), remedy));
        }
        let args = match text(variables, "CNI_ARGS")? {
            Some(text) => Args::parse(&text)?,
            None => Args::default(),
        };
        Ok(Self { container_id, ifname, netns, args })
    }
}

impl Deletion {
    /// Without `CNI_ARGS`, which do not identify what must be removed: a pod must be able to go whatever they are.
    fn read(variables: &impl Variables) -> Result<Self, CniError> {
        let container_id = required(variables, "CNI_CONTAINERID")?;
        if !is_container_id(&container_id) {
            let remedy = "use letters, digits, '_', '.' and '-', beginning with a letter or digit";
            return Err(invalid("CNI_CONTAINERID", &container_id, remedy));
        }
        let ifname = required(variables, "CNI_IFNAME")?;
        let ifname = interface(&ifname).ok_or_else(|| {
            let remedy = "use 1 to 15 characters without '/', ':', '%' and white space, and not \"all\", \"default\" or \"lo\"";
            invalid("CNI_IFNAME", &ifname, remedy)
        })?;
        Ok(Self { container_id, ifname, netns: netns(variables), args: Args::default() })
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
fn netns(variables: &impl Variables) -> Option<PathBuf> {
    let path = variables.get("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from)?;
    // Later plugins compare the text with their own CNI_NETNS, so an absolute path stays as it is.
    Some(if path.is_absolute() { path } else { std::path::absolute(&path).unwrap_or(path) })
}

/// A name that an interface of a pod can be given. Every network namespace has its loopback interface.
fn interface(name: &str) -> Option<IfName> {
    name.parse().ok().filter(|_| name != "lo")
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
            ("CNI_NETNS", "/proc/77/fd/3"),
            ("CNI_NETNS", "/proc/77/task/78/fd/3"),
            ("CNI_ARGS", "FOO=bar"),
            ("CNI_ARGS", "MAC"),
            ("CNI_ARGS", "IgnoreUnknown=perhaps"),
        ] {
            let mut variables = complete();
            variables.insert(name, value);
            let error = Attachment::in_sandbox(&variables).unwrap_err();
            assert_eq!(error.code, 4, "{name}={value}");
            assert!(error.message.contains(name), "{}", error.message);
        }
        let mut variables = complete();
        variables.insert("CNI_COMMAND", "add");
        assert_eq!(Command::read(&variables).unwrap_err().code, 4);
    }

    #[test]
    fn a_del_of_what_has_no_possible_name_has_nothing_to_do() {
        let read = |command, name| {
            let mut variables = complete();
            variables.insert("CNI_COMMAND", command);
            variables.insert("CNI_IFNAME", name);
            Command::read(&variables)
        };
        for name in ["a\u{1}", "sixteencharacter", "lo"] {
            assert_eq!(read("DEL", name), Ok(None), "{name}");
            assert_eq!(read("ADD", name).unwrap_err().code, 4, "{name}");
        }
        assert!(matches!(read("DEL", "net1"), Ok(Some(Command::Del(_)))));
        assert!(read("DEL", "").is_err());
        let mut variables = complete();
        variables.extend([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "../x")]);
        assert_eq!(Command::read(&variables), Ok(None));
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
            assert_eq!(Attachment::in_sandbox(&variables).unwrap().netns, read);
        }
    }

    #[test]
    fn only_a_del_may_come_without_a_namespace() {
        let mut variables = complete();
        variables.remove("CNI_NETNS");
        for (command, works) in
            [("DEL", true), ("ADD", false), ("CHECK", false), ("GC", true), ("STATUS", true)]
        {
            variables.insert("CNI_COMMAND", command);
            assert_eq!(Command::read(&variables).is_ok(), works, "{command}");
        }
    }

    #[test]
    fn only_a_del_may_come_with_arguments_that_cannot_be_read() {
        let mut variables = complete();
        for text in ["colour", "COLOUR=red", "IgnoreUnknown=perhaps"] {
            variables.insert("CNI_ARGS", text);
            for (command, works) in [("DEL", true), ("ADD", false), ("CHECK", false)] {
                variables.insert("CNI_COMMAND", command);
                assert_eq!(Command::read(&variables).is_ok(), works, "{command} {text}");
            }
        }
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

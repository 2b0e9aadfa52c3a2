//! First process of a virtual machine that lives for one test: mounts what programs expect, loads the modules, runs
//! the test that the kernel's command line names, tells on the console how it ended, and switches the machine off.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

/// Where the image has the modules, named so that their order is the order to load them in.
const MODULES: &str = "/modules";

/// The word of the kernel's command line that names the test.
const TEST: &str = "guest.test=";

/// The word of the kernel's command line that names a module which this machine should not have.
const WITHOUT: &str = "guest.without=";

/// Devices that these modules would make by themselves, under names that tests want.
const PARAMETERS: [(&str, &str); 2] = [("bonding.ko", "max_bonds=0"), ("dummy.ko", "numdummies=0")];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        say("guest-lab is the first process of a virtual machine; `make test-guest` starts it");
        return ExitCode::FAILURE;
    }
    // The last line of the console that starts with these words is the result.
    match run() {
        Ok(status) => say(&format!("guest-lab: ended with {}", code(status))),
        Err(error) => say(&format!("guest-lab: failed: {error:#}")),
    }
    rustix::fs::sync();
    let error = rustix::system::reboot(RebootCommand::PowerOff).err();
    // The kernel panics when its first process ends, and with that the machine ends too.
    say(&format!("guest-lab: switch off: {error:?}"));
    ExitCode::FAILURE
}

fn run() -> Result<ExitStatus> {
    mount_all()?;
    applets()?;
    let line = fs::read_to_string("/proc/cmdline").context("read the kernel's command line")?;
    let word = |key| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    load_modules(word(WITHOUT))?;
    loopback_up()?;
    let test = word(TEST).context("the kernel's command line names no test")?;
    say(&format!("guest-lab: {test} begins after {} s", uptime()?));
    let mut program = Command::new("/test");
    program.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    program.env("GUEST_LAB", "1").env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").env("RUST_LIB_BACKTRACE", "0");
    let status = program.status().context("run the test")?;
    say(&format!("guest-lab: {test} ended after {} s", uptime()?));
    Ok(status)
}

fn mount_all() -> Result<()> {
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
        rustix::mount::mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {target}"))?;
    }
    for directory in [
        "/run/netns",
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet/pod-resources",
        "/var/lib/macvtap",
    ] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
    }
    Ok(())
}

/// One program is the shell and all the small tools.
fn applets() -> Result<()> {
    for applet in ["sh", "cat", "ls", "mount", "sleep", "uname", "readlink"] {
        let path = Path::new("/bin").join(applet);
        if !path.exists() {
            symlink("busybox", &path).with_context(|| format!("make {}", path.display()))?;
        }
    }
    Ok(())
}

fn load_modules(without: Option<&str>) -> Result<()> {
    let mut modules: Vec<_> = fs::read_dir(MODULES)
        .with_context(|| format!("list {MODULES}"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("list {MODULES}"))?;
    modules.sort();
    ensure!(!modules.is_empty(), "{MODULES} is empty");
    for module in modules {
        let name = module.to_string_lossy();
        if without.is_some_and(|without| name.ends_with(&format!("-{without}.ko"))) {
            continue;
        }
        let parameters = PARAMETERS.iter().find(|(suffix, _)| name.ends_with(suffix));
        let parameters = std::ffi::CString::new(parameters.map_or("", |(_, parameters)| parameters))?;
        let file = File::open(&module).with_context(|| format!("open {name}"))?;
        rustix::system::finit_module(&file, &parameters, 0).with_context(|| format!("load {name}"))?;
    }
    Ok(())
}

fn loopback_up() -> Result<()> {
    let status = Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(status.success(), "set lo up: {status}");
    Ok(())
}

/// Seconds since the kernel started.
fn uptime() -> Result<String> {
    let text = fs::read_to_string("/proc/uptime").context("read the uptime")?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// As a shell counts it: a signal is 128 and its number.
fn code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

#[expect(clippy::print_stdout, reason = "the console is how this program reports")]
fn say(line: &str) {
    println!("{line}");
}

//! One virtual machine: one processor in emulation, so that no hardware support is needed, and NICs on a common cable.
//!
//! Each NIC has a root port of its own: its PCI address follows from its number, and it can be unplugged. The
//! emulator's control channel ends inside the machine, where the test changes its own hardware.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::kernel::Flavour;
use crate::{layout, process, wait};

/// A test that takes longer hangs.
const DEADLINE: Duration = Duration::from_mins(5);

/// NICs, each with its speed in Mbit/s: most drivers of clouds do not know it.
const NICS: [Option<u32>; 4] = [Some(10_000), Some(10_000), Some(25_000), None];

/// The last NIC is near the second memory node, behind a host bridge of its own.
const NUMA_BUS: u8 = 0x40;

const MEMORY_MIB: u32 = 512;

/// The kind of machine that a test wants, by the module that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// NICs of clouds, and a kernel with everything.
    Usual,
    /// NICs whose carrier comes some time after they are up.
    SlowCarrier,
    /// A NIC with virtual functions.
    Sriov,
    /// The kernel has no IPv6.
    NoIpv6,
    /// The kernel has no macvtap.
    NoMacvtap,
}

impl Variant {
    /// What the test of this name wants.
    pub(super) fn of(test: &str) -> Self {
        match test.split("::").next() {
            Some("slow_carrier") => Self::SlowCarrier,
            Some("sriov") => Self::Sriov,
            Some("no_ipv6") => Self::NoIpv6,
            Some("no_macvtap") => Self::NoMacvtap,
            _ => Self::Usual,
        }
    }

    /// The kernel that has its drivers.
    pub(super) fn flavour(self) -> Flavour {
        match self {
            Self::SlowCarrier | Self::Sriov => Flavour::General,
            Self::Usual | Self::NoIpv6 | Self::NoMacvtap => Flavour::Cloud,
        }
    }

    /// Further words for the kernel, and for the first process.
    fn words(self) -> &'static str {
        match self {
            Self::NoIpv6 => " ipv6.disable=1",
            Self::NoMacvtap => " guest.without=macvtap",
            Self::Usual | Self::SlowCarrier | Self::Sriov => "",
        }
    }

    /// Whether its hardware wants an emulator that Debian 12 does not have.
    pub(super) fn wants_recent_emulator(self) -> bool {
        self == Self::Sriov
    }

    /// The emulator's words for a NIC.
    fn nic(self, number: usize, speed: Option<u32>) -> String {
        match (self, speed) {
            (Self::SlowCarrier, _) => "e1000".to_owned(),
            (Self::Sriov, _) if number == 0 => "igb".to_owned(),
            (_, Some(speed)) => format!("virtio-net-pci,speed={speed},duplex=full"),
            (_, None) => "virtio-net-pci".to_owned(),
        }
    }
}

/// What all machines of a variant have in common.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) variant: Variant,
    /// The emulator's program, with what it needs to find its files.
    pub(super) emulator: Vec<String>,
    pub(super) kernel: PathBuf,
    pub(super) archive: PathBuf,
    pub(super) dir: PathBuf,
}

impl Machine {
    /// Boots, lets one test run, and gives what the console said.
    pub(super) fn run(&self, test: &str) -> Result<String> {
        let dir = self.dir.join(test.replace("::", "-"));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let ended = self.boot(test, &dir);
        let said = fs::read(dir.join("console")).unwrap_or_default();
        layout::remove(&dir)?;
        let said = String::from_utf8_lossy(&said);
        Ok(match ended {
            Ok(()) => said.into_owned(),
            Err(error) => format!("{said}\n{error:#}\n"),
        })
    }

    fn boot(&self, test: &str, dir: &Path) -> Result<()> {
        let errors = dir.join("errors");
        let log = fs::File::create(&errors).with_context(|| format!("create {}", errors.display()))?;
        let mut command = self.command(test, dir);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let mut child = Emulator(child.context("start the emulator")?);
        let status = wait::until("the machine's end", DEADLINE, || Ok(child.0.try_wait()?))
            .with_context(|| process::tail(&errors, 10))?;
        anyhow::ensure!(status.success(), "the emulator: {status}\n{}", process::tail(&errors, 10));
        Ok(())
    }

    fn command(&self, test: &str, dir: &Path) -> Command {
        // Ends with the thread that waits for it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(&self.emulator);
        command.args(["-M", "q35,accel=tcg", "-cpu", "max", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot"]);
        let half = MEMORY_MIB / 2;
        command.args(["-m", &MEMORY_MIB.to_string(), "-smp", "1"]);
        for node in 0..2 {
            command.args(["-object", &format!("memory-backend-ram,id=m{node},size={half}M")]);
            command.args(["-numa", &format!("node,nodeid={node},memdev=m{node}")]);
        }
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.archive);
        // On a busy host the emulated timer is late, which the kernel would take for a broken one.
        let line =
            format!("console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on guest.test={test}");
        command.args(["-append", &(line + self.variant.words())]);
        // Relative, because a socket's path has room for no more than 107 bytes.
        command.current_dir(dir);
        command.args(["-chardev", "file,id=console,path=console", "-serial", "chardev:console"]);
        command.args(["-chardev", "socket,id=control,path=control,server=on,wait=off"]);
        command.args(["-mon", "chardev=control,mode=control"]);
        command.args(["-chardev", "socket,id=inside,path=control"]);
        command.args(["-device", "virtio-serial-pci,addr=3.0"]);
        command.args(["-device", "virtserialport,chardev=inside,name=control"]);
        nics(&mut command, self.variant);
        command
    }
}

fn nics(command: &mut Command, variant: Variant) {
    command.args(["-device", &format!("pxb-pcie,id=far,bus_nr={NUMA_BUS},numa_node=1,bus=pcie.0,addr=10.0")]);
    let last = NICS.len() - 1;
    for (number, speed) in NICS.iter().enumerate() {
        let bus = if number == last {
            "far,addr=0.0".to_owned()
        } else {
            format!("pcie.0,addr={:x}.0", number + 4)
        };
        let port = format!("pcie-root-port,id=rp{number},chassis={number},slot={number},bus={bus}");
        let mac = format!("52:54:00:00:00:{number:02x}");
        command.args(["-device", &port, "-netdev", &format!("hubport,hubid=0,id=h{number}")]);
        let nic = variant.nic(number, *speed);
        command.args([
            "-device",
            &format!("{nic},id=n{number},netdev=h{number},bus=rp{number},mac={mac},romfile="),
        ]);
    }
}

/// Ends with its owner.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_of_a_test_says_which_machine_it_wants() {
        assert_eq!(Variant::of("bond::members"), Variant::Usual);
        assert_eq!(Variant::of("no_ipv6::pods"), Variant::NoIpv6);
        assert_eq!(Variant::of("sriov::no_ipv6"), Variant::Sriov);
    }
}

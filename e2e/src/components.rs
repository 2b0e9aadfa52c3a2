//! Kubernetes, etcd, containerd, Multus, Helm, kube-ovn and KubeVirt, built from the Go modules pinned in `components/`.
//!
//! Go checks every module against `go.sum`. Modules whose dependencies agree share one `go.mod`, and the others are held
//! at the same versions as far as they go: what two programs have in common is then compiled once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::layout::{self, Checkout};
use crate::{process, progress};

/// One Go module of `components/`.
struct Family {
    name: &'static str,
    tags: &'static str,
    /// Linker variables and the module whose version in `go.mod` they get: `v1.36.3`, or one of its numbers.
    variables: &'static [(&'static str, Version)],
    /// Whether it has parts in C.
    cgo: bool,
    steps: &'static [Step],
}

/// Programs that are built together.
struct Step {
    name: &'static str,
    /// Seconds on two cores with nothing built before, for those who build the first time.
    seconds: u64,
    programs: &'static [Program],
}

/// A package and the name of its program.
struct Program(&'static str, &'static str);

#[derive(Clone, Copy)]
enum Version {
    Whole(&'static str),
    Major(&'static str),
    Minor(&'static str),
    Fixed(&'static str),
}

const K8S: &str = "k8s.io/kubernetes";
const CONTAINERD: &str = "github.com/containerd/containerd/v2";
const HELM: &str = "helm.sh/helm/v3";
const RUNC: &str = "github.com/opencontainers/runc";
const KUBE_OVN_MODULE: &str = "github.com/kubeovn/kube-ovn";
const KUBEVIRT_MODULE: &str = "kubevirt.io/kubevirt";

const FAMILIES: [Family; 3] = [
    Family {
        name: "kubernetes",
        tags: "",
        // Without them every component calls itself v0.0.0.
        variables: &[
            ("k8s.io/component-base/version.gitVersion", Version::Whole(K8S)),
            ("k8s.io/component-base/version.gitMajor", Version::Major(K8S)),
            ("k8s.io/component-base/version.gitMinor", Version::Minor(K8S)),
            ("k8s.io/component-base/version.gitTreeState", Version::Fixed("clean")),
            ("helm.sh/helm/v3/internal/version.version", Version::Whole(HELM)),
        ],
        cgo: false,
        steps: &[
            Step {
                name: "kube-apiserver",
                seconds: 215,
                programs: &[Program("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver")],
            },
            Step {
                name: "kubectl and kubelet",
                seconds: 65,
                programs: &[
                    Program("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
                    Program("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
                ],
            },
            Step {
                name: "controller-manager, scheduler, kube-proxy",
                seconds: 32,
                programs: &[
                    Program("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
                    Program("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
                    Program("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
                ],
            },
            Step {
                name: "Multus and Helm",
                seconds: 16,
                programs: &[
                    Program("gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus", "multus"),
                    Program("gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus-daemon", "multus-daemon"),
                    Program("gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus-shim", "multus-shim"),
                    Program("helm.sh/helm/v3/cmd/helm", "helm"),
                ],
            },
        ],
    },
    Family {
        name: "etcd",
        tags: "",
        variables: &[],
        cgo: false,
        steps: &[Step {
            name: "etcd",
            seconds: 8,
            programs: &[Program("go.etcd.io/etcd/server/v3", "etcd")],
        }],
    },
    Family {
        name: "containerd",
        // Snapshotters that would need C libraries or are not used.
        tags: "no_btrfs no_zfs no_devmapper no_aufs",
        variables: &[("github.com/containerd/containerd/v2/version.Version", Version::Whole(CONTAINERD))],
        cgo: false,
        steps: &[Step {
            name: "containerd",
            seconds: 32,
            programs: &[
                Program("github.com/containerd/containerd/v2/cmd/containerd", "containerd"),
                Program(
                    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                    "containerd-shim-runc-v2",
                ),
                Program("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
            ],
        }],
    },
];

/// kube-ovn, which only few clusters have: it is built for those.
const KUBE_OVN: Family = Family {
    name: "kube-ovn",
    tags: "",
    variables: &[("github.com/kubeovn/kube-ovn/versions.VERSION", Version::Whole(KUBE_OVN_MODULE))],
    cgo: false,
    steps: &[Step {
        name: "kube-ovn",
        seconds: 140,
        programs: &[
            Program("github.com/kubeovn/kube-ovn/cmd/cni", "kube-ovn"),
            Program("github.com/kubeovn/kube-ovn/cmd/controller", "kube-ovn-controller"),
            Program("github.com/kubeovn/kube-ovn/cmd/daemon", "kube-ovn-daemon"),
            Program("macvtap.network.kubevirt.io/e2e/kube-ovn/schemas", "kube-ovn-schemas"),
        ],
    }],
};

/// What nodes of further kinds run. Debian's runc knows no user namespaces.
const FIELD: Family = Family {
    name: "runc",
    tags: "seccomp",
    variables: &[("main.version", Version::Whole(RUNC))],
    cgo: true,
    steps: &[Step { name: "runc", seconds: 20, programs: &[Program(RUNC, "runc")] }],
};

/// KubeVirt, which only the clusters of its own tests have. All in one call, though only two need C: with two settings
/// everything they share would be compiled twice.
const KUBEVIRT: Family = Family {
    name: "kubevirt",
    // libvirt's library is opened when virt-launcher starts, so it need not be installed here.
    tags: "libvirt_dlopen",
    cgo: true,
    variables: &[
        ("kubevirt.io/client-go/version.gitVersion", Version::Whole(KUBEVIRT_MODULE)),
        ("kubevirt.io/client-go/version.gitTreeState", Version::Fixed("clean")),
    ],
    steps: &[Step {
        name: "KubeVirt",
        seconds: 160,
        programs: &[
            Program("kubevirt.io/kubevirt/cmd/virt-operator", "virt-operator"),
            Program("kubevirt.io/kubevirt/cmd/virt-api", "virt-api"),
            Program("kubevirt.io/kubevirt/cmd/virt-controller", "virt-controller"),
            Program("kubevirt.io/kubevirt/cmd/virt-handler", "virt-handler"),
            Program("kubevirt.io/kubevirt/cmd/virt-launcher", "virt-launcher"),
            Program("kubevirt.io/kubevirt/cmd/virt-launcher-monitor", "virt-launcher-monitor"),
            Program("kubevirt.io/kubevirt/cmd/virt-chroot", "virt-chroot"),
            Program("kubevirt.io/kubevirt/cmd/virt-freezer", "virt-freezer"),
            Program("kubevirt.io/kubevirt/cmd/virt-probe", "virt-probe"),
            Program("kubevirt.io/kubevirt/cmd/virt-tail", "virt-tail"),
        ],
    }],
};

/// Builds what is missing or no longer what its `go.mod` says. Costs a few milliseconds when there is nothing to do.
pub fn build(checkout: &Checkout) -> Result<()> {
    build_families(checkout, &FAMILIES)
}

/// As [`build`], for kube-ovn.
pub fn build_kube_ovn(checkout: &Checkout) -> Result<()> {
    build_families(checkout, &[KUBE_OVN])
}

/// As [`build`], for nodes of further kinds.
pub fn build_field(checkout: &Checkout) -> Result<()> {
    build_families(checkout, &[FIELD])
}

/// As [`build`], for KubeVirt.
pub fn build_kubevirt(checkout: &Checkout) -> Result<()> {
    build_families(checkout, &[KUBEVIRT])
}

/// The directory of kube-ovn's sources, where its manifests are.
pub fn kube_ovn_sources(checkout: &Checkout) -> Result<PathBuf> {
    sources(checkout, KUBE_OVN.name, KUBE_OVN_MODULE)
}

/// The directory of KubeVirt's sources, where its manifests and the files of its images are.
pub fn kubevirt_sources(checkout: &Checkout) -> Result<PathBuf> {
    sources(checkout, KUBEVIRT.name, KUBEVIRT_MODULE)
}

fn sources(checkout: &Checkout, family: &str, module: &str) -> Result<PathBuf> {
    let version = version(checkout, family, module);
    let version = version.with_context(|| format!("go.mod does not require {module}"))?;
    let mut command = Command::new("go");
    command.args(["mod", "download", "-json", &format!("{module}@{version}")]);
    command.current_dir(checkout.path("e2e/components").join(family)).stdin(Stdio::null());
    let said: serde_json::Value = serde_json::from_str(&process::output(&mut command)?)
        .with_context(|| format!("read what Go says about {module}"))?;
    let dir = said["Dir"].as_str().with_context(|| format!("Go names no directory of {module}"))?;
    Ok(PathBuf::from(dir))
}

/// The version of KubeVirt that is built.
pub fn kubevirt_version(checkout: &Checkout) -> Result<String> {
    version(checkout, KUBEVIRT.name, KUBEVIRT_MODULE).context("go.mod does not require KubeVirt")
}

/// The version of kube-ovn that is built.
pub fn kube_ovn_version(checkout: &Checkout) -> Result<String> {
    version(checkout, KUBE_OVN.name, KUBE_OVN_MODULE).context("go.mod does not require kube-ovn")
}

fn build_families(checkout: &Checkout, families: &[Family]) -> Result<()> {
    fs::create_dir_all(checkout.bin()).with_context(|| format!("create {}", checkout.bin().display()))?;
    let _lock = checkout.lock("components")?;
    for family in families {
        let builder = Builder { checkout, family };
        let flags = builder.flags()?;
        let digest = builder.digest(&flags)?;
        for step in family.steps {
            if !builder.current(step, &digest) {
                let expected = Duration::from_secs(step.seconds);
                progress::timed(step.name, expected, || builder.build(step, &flags, &digest))?;
            }
        }
    }
    Ok(())
}

struct Builder<'a> {
    checkout: &'a Checkout,
    family: &'a Family,
}

impl Builder<'_> {
    fn module(&self) -> PathBuf {
        self.checkout.path("e2e/components").join(self.family.name)
    }

    fn flags(&self) -> Result<Vec<String>> {
        let path = self.module().join("go.mod");
        let go_mod = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut linker = vec!["-s -w".to_owned()];
        for (variable, version) in self.family.variables {
            linker.push(format!("-X {variable}={}", version.resolve(&go_mod)?));
        }
        let linker = linker.join(" ");
        let flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", "-tags", self.family.tags, "-ldflags"];
        Ok(flags.map(str::to_owned).into_iter().chain([linker]).collect())
    }

    /// Everything the result depends on, but for the sources of others, which `go.sum` pins.
    fn digest(&self, flags: &[String]) -> Result<String> {
        let mut all = flags.join("\n").into_bytes();
        let mut files = vec!["go.mod".to_owned(), "go.sum".to_owned()];
        files.extend(self.own_programs().map(|program| format!("{program}/main.go")));
        for file in files {
            let path = self.module().join(file);
            all.extend(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        Ok(layout::sha256_hex(&all))
    }

    /// The directories, in the module itself, of programs that are ours.
    fn own_programs(&self) -> impl Iterator<Item = &'static str> {
        let prefix = format!("macvtap.network.kubevirt.io/e2e/{}/", self.family.name);
        let programs = self.family.steps.iter().flat_map(|step| step.programs);
        programs.filter_map(move |program| program.0.strip_prefix(&prefix))
    }

    fn stamp(&self, program: &Program) -> PathBuf {
        self.checkout.bin().join(format!(".{}.built", program.1))
    }

    fn current(&self, step: &Step, digest: &str) -> bool {
        step.programs.iter().all(|program| {
            let stamp = fs::read_to_string(self.stamp(program));
            self.checkout.bin().join(program.1).exists() && stamp.is_ok_and(|stamp| stamp == digest)
        })
    }

    fn build(&self, step: &Step, flags: &[String], digest: &str) -> Result<()> {
        // One compilation for all packages, into a directory first: a program that runs keeps its file.
        let fresh = self.checkout.artefacts().join("fresh");
        fs::create_dir_all(&fresh).with_context(|| format!("create {}", fresh.display()))?;
        let mut command = Command::new("nice");
        command
            .args(["go", "build"])
            .args(flags)
            .env("CGO_ENABLED", if self.family.cgo { "1" } else { "0" })
            .current_dir(self.module());
        match step.programs {
            // A main package at the top of a module would be called after the version.
            [program] => command.arg("-o").arg(fresh.join(program.1)).arg(program.0),
            programs => command.arg("-o").arg(&fresh).args(programs.iter().map(|program| program.0)),
        };
        process::output(command.stdin(Stdio::null()))
            .with_context(|| format!("build {} with Go (https://go.dev/dl, 1.26 or later)", step.name))?;
        for program in step.programs {
            let package = program.0.rsplit('/').next().unwrap_or(program.0);
            let built = fresh.join(if step.programs.len() == 1 { program.1 } else { package });
            fs::rename(&built, self.checkout.bin().join(program.1))
                .with_context(|| format!("install {}", program.1))?;
            layout::write(&self.stamp(program), digest)?;
        }
        Ok(())
    }
}

impl Version {
    fn resolve(self, go_mod: &str) -> Result<String> {
        let (module, part) = match self {
            Self::Fixed(value) => return Ok(value.to_owned()),
            Self::Whole(module) => (module, None),
            Self::Major(module) => (module, Some(0)),
            Self::Minor(module) => (module, Some(1)),
        };
        let version =
            required(go_mod, module).with_context(|| format!("go.mod does not require {module}"))?;
        let Some(part) = part else { return Ok(version.to_owned()) };
        let number = version.trim_start_matches('v').split('.').nth(part);
        ensure!(number.is_some(), "{module} {version} is not a version of the form v1.2.3");
        Ok(number.unwrap_or_default().to_owned())
    }
}

/// The version that `go.mod` requires of a module.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|word| word.starts_with('v'))
    })
}

/// The version of a program as its module is required in `family`, for reports.
pub fn version(checkout: &Checkout, family: &str, module: &str) -> Option<String> {
    let go_mod =
        fs::read_to_string(Path::new(&checkout.path("e2e/components")).join(family).join("go.mod")).ok()?;
    required(&go_mod, module).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_MOD: &str = "module x\n\nrequire (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n\
                          tool k8s.io/kubernetes/cmd/kubelet\nreplace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n";

    #[test]
    fn versions_come_from_go_mod() {
        assert_eq!(Version::Whole("k8s.io/kubernetes").resolve(GO_MOD).unwrap(), "v1.36.3");
        assert_eq!(Version::Major("k8s.io/kubernetes").resolve(GO_MOD).unwrap(), "1");
        assert_eq!(Version::Minor("k8s.io/kubernetes").resolve(GO_MOD).unwrap(), "36");
        assert!(Version::Whole("k8s.io/api").resolve(GO_MOD).is_err());
    }

    #[test]
    fn every_pinned_module_gives_its_flags() {
        let checkout = Checkout::here();
        for family in FAMILIES.iter().chain([&KUBE_OVN, &FIELD, &KUBEVIRT]) {
            let builder = Builder { checkout: &checkout, family };
            let flags = builder.flags().unwrap();
            assert_ne!(builder.digest(&flags).unwrap(), "");
            assert!(flags.last().unwrap().starts_with("-s -w"), "{flags:?}");
        }
    }
}

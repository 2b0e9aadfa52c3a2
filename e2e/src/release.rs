//! A release: everything that a user downloads, written to `dist/` from one commit.
//!
//! Two calls for one commit in one place give the same bytes: times are those of the commit, and archives hold no other.

mod archive;
mod build;
mod image;
mod licenses;
mod sbom;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::layout::{self, Checkout};
use crate::progress::say;
use crate::{components, images, prerequisites, process};
use build::Platform;

/// The version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const CHART: &str = "charts/macvtap-operator";

/// Where a release comes from and where it will be, as its files say it.
#[derive(Clone, Debug)]
struct Origin {
    /// The commit.
    revision: String,
    /// Its time, in seconds since 1970.
    seconds: u64,
    /// Its time, as OCI images write it.
    time: String,
    /// `RELEASE_SOURCE`: the address of the repository.
    source: Option<String>,
    /// `RELEASE_DOWNLOADS`: where the files of the release can be downloaded.
    downloads: String,
    /// `RELEASE_REGISTRY`: where the images are.
    registry: Option<String>,
}

impl Origin {
    fn of(checkout: &Checkout) -> Result<Self> {
        let git = |args: &[&str]| -> Result<String> {
            let text = process::output(
                Command::new("git").args(args).current_dir(checkout.root()).env("TZ", "UTC"),
            )?;
            Ok(text.trim().to_owned())
        };
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut revision = git(&["rev-parse", "HEAD"])?;
        if !git(&["status", "--porcelain"])?.is_empty() {
            revision.push_str("-dirty");
        }
        let time = git(&["show", "-s", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%ct %cd", "HEAD"]);
        let time = time.context("read the time of the commit")?;
        let (seconds, time) = time.split_once(' ').context("git shows no time")?;
        Ok(Self {
            revision,
            seconds: seconds.parse().context("git shows no time")?,
            time: time.to_owned(),
            source: given("RELEASE_SOURCE"),
            downloads: given("RELEASE_DOWNLOADS").unwrap_or_else(|| "https://DOWNLOADS".to_owned()),
            registry: given("RELEASE_REGISTRY"),
        })
    }
}

/// Builds the release of this commit into `dist`.
pub fn run(checkout: &Checkout) -> Result<PathBuf> {
    prerequisites::ensure(checkout)?;
    prerequisites::ensure_cross(checkout)?;
    components::build(checkout)?;
    let origin = Origin::of(checkout)?;
    for platform in Platform::ALL {
        build::compile(checkout, platform, origin.seconds)?;
        build::check(checkout, platform)?;
    }
    let dist = checkout.path("dist");
    layout::remove(&dist)?;
    programs(checkout, &dist)?;
    for name in image::NAMES {
        image::write(checkout, name, &origin, &dist)?;
    }
    manifests(checkout, &origin, &dist)?;
    sbom::write(checkout, &origin, &dist)?;
    checksums(&dist)?;
    say(format_args!("release {VERSION} of {}: {}", origin.revision, dist.display()));
    Ok(dist)
}

/// The static programs, and the CLI as an archive for each platform.
fn programs(checkout: &Checkout, dist: &Path) -> Result<()> {
    for platform in Platform::ALL {
        // That one is of use in its image only.
        for krate in build::PROGRAMS.into_iter().filter(|krate| *krate != images::TAPGUEST) {
            let content = build::read(checkout, platform, krate)?;
            let name = format!("{}-linux-{}", krate.program, platform.oci());
            if krate.program == "kubectl-macvtap" {
                let license = fs::read(checkout.path("LICENSE")).context("read LICENSE")?;
                let files =
                    [("LICENSE", 0o644, license.as_slice()), (krate.program, 0o755, content.as_slice())];
                layout::write(
                    &dist.join(format!("{name}.tar.gz")),
                    archive::gzip(&archive::files(&files)?)?,
                )?;
            } else {
                layout::write(&dist.join(&name), content)?;
                images::executable(&dist.join(name))?;
            }
        }
    }
    Ok(())
}

/// The chart as a package, everything it yields as one manifest, the kinds, and the manifest of krew.
fn manifests(checkout: &Checkout, origin: &Origin, dist: &Path) -> Result<()> {
    let staged = checkout.artefacts().join("release/macvtap-operator");
    stage_chart(checkout, origin, &staged)?;
    let package = archive::gzip(&archive::directory(&staged, "macvtap-operator")?)?;
    layout::write(&dist.join(format!("macvtap-operator-{VERSION}.tgz")), package)?;
    let manifest = manifest(checkout, &staged, origin.registry.as_deref())?;
    layout::write(&dist.join("install.yaml"), manifest)?;
    let mut kinds = String::new();
    for (_, path) in sorted(&checkout.path("crds/yaml"))? {
        kinds += &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    }
    layout::write(&dist.join("crds.yaml"), kinds)?;
    layout::write(&dist.join("macvtap.krew.yaml"), krew(origin, dist)?)
}

/// A copy of the chart that says where it comes from.
fn stage_chart(checkout: &Checkout, origin: &Origin, staged: &Path) -> Result<()> {
    layout::remove(staged)?;
    layout::write(&staged.with_file_name("stamp"), &origin.revision)?;
    process::output(Command::new("cp").arg("-r").arg(checkout.path(CHART)).arg(staged))?;
    let path = staged.join("Chart.yaml");
    let mut text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    if let Some(source) = &origin.source {
        text = format!("{}\nhome: {source}\n", text.trim_end());
    }
    layout::write(&path, text)
}

/// Everything that the chart yields, as one manifest, with images of this registry.
pub fn manifest(checkout: &Checkout, chart: &Path, registry: Option<&str>) -> Result<String> {
    let mut helm = Command::new(checkout.bin().join("helm"));
    helm.args(["template", "macvtap"]).arg(chart).args([
        "-n",
        "macvtap-system",
        "--kube-version=1.32.0",
        "--no-hooks",
    ]);
    if let Some(registry) = registry {
        helm.args(["--set", &format!("global.imageRegistry={registry}")]);
    }
    let objects = process::output(&mut helm).context("render the chart")?;
    let objects =
        objects.replace("app.kubernetes.io/managed-by: Helm\n", "app.kubernetes.io/managed-by: manifest\n");
    Ok(format!(
        "# macvtap-operator {VERSION}. Install and upgrade: kubectl apply --server-side -f install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: macvtap-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
{objects}"
    ))
}

/// The manifest with which krew installs the CLI.
fn krew(origin: &Origin, dist: &Path) -> Result<String> {
    let mut platforms = String::new();
    for platform in Platform::ALL {
        let name = format!("kubectl-macvtap-linux-{}.tar.gz", platform.oci());
        let content = fs::read(dist.join(&name)).with_context(|| format!("read {name}"))?;
        write!(
            platforms,
            "  - selector: {{matchLabels: {{os: linux, arch: {}}}}}
    uri: {}/v{VERSION}/{name}
    sha256: {}
    bin: kubectl-macvtap
    files: [{{from: kubectl-macvtap, to: .}}, {{from: LICENSE, to: .}}]
",
            platform.oci(),
            origin.downloads,
            layout::sha256_hex(&content)
        )?;
    }
    let home = origin.source.as_ref().map(|source| format!("  homepage: {source}\n")).unwrap_or_default();
    Ok(format!(
        "apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: macvtap
spec:
  version: v{VERSION}
{home}  shortDescription: Check, explain and plan macvtap networking
  description: |
    Checks what macvtap networking needs, shows pools, nodes and links on one screen, explains why a pod has or
    lacks its device, and collects what a bug report needs.
  platforms:
{platforms}"
    ))
}

/// The checksums of all files, as `sha256sum --check` reads them.
fn checksums(dist: &Path) -> Result<()> {
    let mut text = String::new();
    for (name, path) in sorted(dist)? {
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        writeln!(text, "{}  {name}", layout::sha256_hex(&content))?;
    }
    layout::write(&dist.join("SHA256SUMS"), text)
}

/// The files of a directory, by name.
fn sorted(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    ensure!(!found.is_empty(), "{} is empty", directory.display());
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_workspace_and_change_log_have_one_version() {
        let checkout = Checkout::here();
        let chart = fs::read_to_string(checkout.path("charts/macvtap-operator/Chart.yaml")).unwrap();
        for key in ["version", "appVersion"] {
            assert!(chart.lines().any(|line| line == format!("{key}: {VERSION}")), "{key}: {chart}");
        }
        let changes = fs::read_to_string(checkout.path("CHANGELOG.md")).unwrap();
        assert!(changes.contains(&format!("\n## {VERSION}")), "CHANGELOG.md has no section for {VERSION}");
        let standalone = fs::read_to_string(checkout.path("examples/standalone/daemonset.yaml")).unwrap();
        assert!(
            standalone.contains(&format!("macvtap-node-agent:{VERSION}")),
            "the standalone example is older"
        );
    }

    #[test]
    fn the_documentation_pushes_every_image_of_the_release_and_unpacks_its_cli() {
        let text = fs::read_to_string(Checkout::here().path("README.md")).unwrap();
        let archive = format!("oci-archive:dist/$image-{VERSION}.oci.tar");
        let all = format!("for image in {}; do skopeo copy --all {archive} ", image::NAMES.join(" "));
        assert!(text.contains(&all), "README.md does not push each image by `{all}`");
        let cli = "tar -xzf dist/kubectl-macvtap-linux-amd64.tar.gz ";
        assert!(text.contains(cli), "README.md does not unpack the CLI by `{cli}`");
    }

    #[test]
    fn checksums_are_what_sha256sum_reads() {
        let dist = tempfile::tempdir().unwrap();
        layout::write(&dist.path().join("b"), "two").unwrap();
        layout::write(&dist.path().join("a"), "one").unwrap();
        checksums(dist.path()).unwrap();
        let checked =
            Command::new("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(dist.path()).output();
        assert_eq!(String::from_utf8(checked.unwrap().stdout).unwrap(), "a: OK\nb: OK\n");
    }
}

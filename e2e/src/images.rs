//! Container images without a container engine: programs are built here, and each image is written as an archive that
//! `ctr images import` and `docker load` read. `images/<name>/Containerfile` says what goes where.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::containerfile::{self, Stage};
use crate::layout::{self, Checkout};
use crate::{process, progress};

/// The sandbox image of the nodes.
pub const PAUSE: &str = "localhost/pause:dev";

/// Seconds that the product's release build takes on two cores, for those who build the first time.
const PRODUCT_SECONDS: u64 = 480;

/// The images, and what is built for each of them.
const IMAGES: [(&str, &[Source]); 5] = [
    ("pause", &[Source::C("pause")]),
    ("busybox", &[Source::Busybox]),
    ("tapguest", &[Source::Rust(TAPGUEST), Source::Busybox]),
    ("macvtap-operator", &[Source::Rust(OPERATOR)]),
    ("macvtap-node-agent", &[Source::Rust(AGENT), Source::Rust(PLUGIN)]),
];

pub(crate) const TAPGUEST: Crate = Crate { package: "tapguest", program: "tapguest", profile: "release" };
pub(crate) const OPERATOR: Crate =
    Crate { package: "macvtap-operator", program: "macvtap-operator", profile: "release" };
pub(crate) const AGENT: Crate =
    Crate { package: "macvtap-node-agent", program: "macvtap-node-agent", profile: "release" };
pub(crate) const CLI: Crate =
    Crate { package: "kubectl-macvtap", program: "kubectl-macvtap", profile: "release" };
pub(crate) const PLUGIN: Crate = Crate { package: "macvtap-cni", program: "macvtap", profile: "cni" };

/// The images of the cluster itself, without the product.
pub const BASE: [&str; 2] = ["pause", "busybox"];
/// All of them.
pub const ALL: [&str; 5] = ["pause", "busybox", "tapguest", "macvtap-operator", "macvtap-node-agent"];

#[derive(Clone, Copy)]
enum Source {
    Rust(Crate),
    C(&'static str),
    Busybox,
}

/// A program of the workspace, and the profile that it is shipped with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crate {
    pub(crate) package: &'static str,
    pub(crate) program: &'static str,
    pub(crate) profile: &'static str,
}

/// What was built.
#[derive(Debug)]
pub struct Image {
    /// `localhost/<name>:dev`.
    pub reference: String,
    /// Bytes of its files.
    pub size: u64,
    /// Identifies the content.
    pub digest: String,
}

/// The reference of an image made here.
pub fn reference(name: &str) -> String {
    format!("localhost/{name}:dev")
}

/// All archives that were built.
pub fn archives(checkout: &Checkout) -> Result<Vec<PathBuf>> {
    let dir = checkout.images();
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Builds the images with these names; unchanged programs and archives stay as they are.
pub fn build(checkout: &Checkout, names: &[&str]) -> Result<Vec<Image>> {
    let wanted: Vec<_> = IMAGES.iter().filter(|(name, _)| names.contains(name)).collect();
    let crates: Vec<Crate> =
        wanted.iter().flat_map(|(_, sources)| sources.iter()).filter_map(Source::as_crate).collect();
    // Cargo has locks of its own, and takes minutes.
    compile(checkout, &crates)?;
    let _lock = checkout.lock("images")?;
    wanted.iter().map(|(name, sources)| assemble(checkout, name, sources)).collect()
}

impl Source {
    fn as_crate(&self) -> Option<Crate> {
        match self {
            Self::Rust(krate) => Some(*krate),
            Self::C(_) | Self::Busybox => None,
        }
    }
}

/// Builds the Rust programs, static, all of one profile in one call: what they share is compiled once.
fn compile(checkout: &Checkout, crates: &[Crate]) -> Result<()> {
    for profile in ["release", "cni"] {
        let group: Vec<&Crate> = crates.iter().filter(|krate| krate.profile == profile).collect();
        if group.is_empty() {
            continue;
        }
        let mut command = cargo_for(checkout, "build", &target(checkout, profile)?);
        command.args(["--profile", profile]).stdin(Stdio::null());
        for krate in &group {
            command.args(["-p", krate.package, "--bin", krate.program]);
        }
        let programs: Vec<&str> = group.iter().map(|krate| krate.program).collect();
        let seconds = if profile == "cni" { 45 } else { PRODUCT_SECONDS };
        let step = programs.join(", ");
        progress::timed(&step, Duration::from_secs(seconds), || process::output(&mut command).map(drop))?;
    }
    Ok(())
}

/// A call of Cargo with the flags of the images' programs: whatever they share with others is compiled once.
pub fn cargo(checkout: &Checkout, verb: &str) -> Result<Command> {
    Ok(cargo_for(checkout, verb, &host()?))
}

pub(crate) fn cargo_for(checkout: &Checkout, verb: &str, target: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args([verb, "--locked", "--target", target]);
    command.arg("--config").arg(checkout.path("images/static.toml")).current_dir(checkout.root());
    process::without_crate(&mut command);
    command
}

/// The target that this machine's compiler builds for by default. Naming it keeps flags for static programs away from
/// build scripts and procedural macros.
fn host() -> Result<String> {
    let about = process::output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// The target of a profile's programs. The plugin is started for every pod, and glibc asks the processor what it is at
/// every start, some fifty times. On a virtual machine the hypervisor answers, which takes a third of a millisecond; musl
/// does not ask. A compiler that has no musl makes the same plugin with glibc.
pub(crate) fn target(checkout: &Checkout, profile: &str) -> Result<String> {
    let host = host()?;
    if profile != PLUGIN.profile {
        return Ok(host);
    }
    let musl = host.replace("-gnu", "-musl");
    let mut command = Command::new("rustc");
    command.args(["--print", "target-libdir", "--target", &musl]).current_dir(checkout.root());
    let libraries = process::output(&mut command);
    let has_musl = libraries.is_ok_and(|path| Path::new(path.trim()).exists());
    Ok(if has_musl { musl } else { host })
}

fn built(checkout: &Checkout, krate: Crate) -> Result<PathBuf> {
    Ok(checkout.path("target").join(target(checkout, krate.profile)?).join(krate.profile).join(krate.program))
}

/// Builds the CNI plugin and the node agent as they are shipped, and says where they are.
pub fn measured(checkout: &Checkout) -> Result<(PathBuf, PathBuf)> {
    compile(checkout, &[PLUGIN, AGENT])?;
    Ok((built(checkout, PLUGIN)?, built(checkout, AGENT)?))
}

/// Builds the operator as it is shipped, and says where it is.
pub fn measured_operator(checkout: &Checkout) -> Result<PathBuf> {
    compile(checkout, &[OPERATOR])?;
    built(checkout, OPERATOR)
}

/// Builds the plugin of kubectl as it is shipped, and returns its path.
pub fn kubectl_plugin(checkout: &Checkout) -> Result<PathBuf> {
    compile(checkout, &[CLI])?;
    built(checkout, CLI)
}

/// Puts what was built into a directory that stands for `/out` of the building stage, and packs what the last stage
/// copies from it.
fn assemble(checkout: &Checkout, name: &str, sources: &[Source]) -> Result<Image> {
    let dir = checkout.path("images").join(name);
    let out = checkout.artefacts().join("image-out").join(name);
    layout::remove(&out)?;
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    for source in sources {
        match source {
            Source::Rust(krate) => copy(&built(checkout, *krate)?, &out.join(krate.program))?,
            Source::C(program) => compile_c(&dir.join(format!("{program}.c")), &out.join(program))?,
            Source::Busybox => busybox(checkout, &out)?,
        }
    }
    let archive = checkout.images().join(format!("{name}.tar"));
    pack(name, &dir.join("Containerfile"), &out, &reference(name), &archive)
}

/// Writes the archive of an image: `out` stands for `/out` of the building stage of its description.
pub(crate) fn pack(
    name: &str,
    containerfile: &Path,
    out: &Path,
    reference: &str,
    archive: &Path,
) -> Result<Image> {
    let text =
        fs::read_to_string(containerfile).with_context(|| format!("read {}", containerfile.display()))?;
    let stage =
        containerfile::last_stage(&text).with_context(|| format!("read {}", containerfile.display()))?;
    let layer = layer(out, &stage).with_context(|| format!("pack image {name}"))?;
    write_archive(name, &stage, &layer, reference, archive)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

fn compile_c(source: &Path, program: &Path) -> Result<()> {
    let mut command = Command::new("gcc");
    command.args(["-Os", "-static", "-s", "-Wall", "-Werror", "-o"]).arg(program).arg(source);
    process::output(&mut command).map(drop)
}

/// The one program and a link for each of its names.
fn busybox(checkout: &Checkout, out: &Path) -> Result<()> {
    let program = checkout.debian().join("bin/busybox");
    let bin = out.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    copy(&program, &bin.join("busybox"))?;
    for name in process::output(Command::new(&program).arg("--list"))?.lines() {
        if name != "busybox" {
            symlink("busybox", bin.join(name)).with_context(|| format!("link {name}"))?;
        }
    }
    Ok(())
}

/// One layer, the same bytes for the same files.
pub(crate) fn layer(out: &Path, stage: &Stage) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.mode(tar::HeaderMode::Deterministic);
    tar.follow_symlinks(false);
    // Programs expect a place for temporary files even where nothing else is.
    append(&mut tar, "tmp/", tar::EntryType::Directory, 0o1777, b"", None)?;
    for (from, to) in &stage.copies {
        let source = out.join(from);
        ensure!(source.exists(), "nothing was built for /out/{from}");
        add(&mut tar, &source, to.trim_end_matches('/'))?;
    }
    tar.into_inner().context("finish the layer")
}

/// Adds a file, or a directory with all that is below it.
pub(crate) fn add(tar: &mut tar::Builder<Vec<u8>>, source: &Path, name: &str) -> Result<()> {
    let kind =
        fs::symlink_metadata(source).with_context(|| format!("read the metadata of {}", source.display()))?;
    if kind.is_symlink() {
        let target = fs::read_link(source)?;
        return append(tar, name, tar::EntryType::Symlink, 0o777, b"", Some(&target));
    }
    if kind.is_file() {
        let content = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        return append(tar, name, tar::EntryType::Regular, kind.permissions().mode() & 0o777, &content, None);
    }
    if !name.is_empty() {
        append(tar, &format!("{name}/"), tar::EntryType::Directory, 0o755, b"", None)?;
    }
    let mut children: Vec<_> = fs::read_dir(source)?.collect::<Result<_, _>>()?;
    children.sort_by_key(fs::DirEntry::file_name);
    for child in children {
        let child_name = child.file_name().to_string_lossy().into_owned();
        let below = if name.is_empty() { child_name } else { format!("{name}/{child_name}") };
        add(tar, &child.path(), &below)?;
    }
    Ok(())
}

pub(crate) fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
    link: Option<&Path>,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    let added = match link {
        Some(target) => tar.append_link(&mut header, name, target),
        None => tar.append_data(&mut header, name, Cursor::new(content)),
    };
    added.with_context(|| format!("add {name}"))
}

/// The environment of an image's program.
pub(crate) fn env(stage: &Stage) -> Vec<String> {
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
    std::iter::once(path).chain(stage.env.iter().cloned()).collect()
}

/// Lets a file be executed.
pub(crate) fn executable(path: &Path) -> Result<()> {
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).with_context(|| format!("make {} executable", path.display()))
}

fn write_archive(name: &str, stage: &Stage, layer: &[u8], reference: &str, file: &Path) -> Result<Image> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {"Env": env(stage), "Entrypoint": stage.entrypoint, "User": stage.user, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layout::sha256_hex(layer))]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": format!("images/{name}/Containerfile")}],
    })
    .to_string();
    let digest = layout::sha256_hex(config.as_bytes());
    let config_name = format!("{digest}.json");
    let manifest =
        json!([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).to_string();

    let mut archive = tar::Builder::new(Vec::new());
    for (entry, content) in [
        (config_name.as_str(), config.as_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        append(&mut archive, entry, tar::EntryType::Regular, 0o644, content, None)?;
    }
    let archive = archive.into_inner().context("finish the archive")?;
    let image = Image { reference: reference.to_owned(), size: layer.len() as u64, digest };
    if fs::read(file).is_ok_and(|old| old == archive) {
        return Ok(image);
    }
    layout::write(&file.with_extension("part"), &archive)?;
    fs::rename(file.with_extension("part"), file).with_context(|| format!("write {}", file.display()))?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_has_a_readable_description_of_what_is_built_for_it() {
        let checkout = Checkout::here();
        for (name, sources) in IMAGES {
            let path = checkout.path("images").join(name).join("Containerfile");
            let stage = containerfile::last_stage(&fs::read_to_string(path).unwrap()).unwrap();
            for krate in sources.iter().filter_map(Source::as_crate) {
                let copied = stage.copies.iter().any(|(from, _)| from == krate.program);
                assert!(copied, "{name} does not copy {}", krate.program);
            }
        }
        assert_eq!(IMAGES.map(|(name, _)| name), ALL);
    }

    #[test]
    fn the_same_files_give_the_same_layer() {
        let dir = tempfile::tempdir().unwrap();
        layout::write(&dir.path().join("bin/b"), "b").unwrap();
        layout::write(&dir.path().join("bin/a"), "a").unwrap();
        symlink("a", dir.path().join("bin/c")).unwrap();
        let stage = Stage { copies: vec![(String::new(), String::new())], ..Stage::default() };
        let first = layer(dir.path(), &stage).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(100);
        fs::File::open(dir.path().join("bin/b")).unwrap().set_modified(later).unwrap();
        assert_eq!(first, layer(dir.path(), &stage).unwrap());
        let mut archive = tar::Archive::new(Cursor::new(first));
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, ["tmp/", "bin/", "bin/a", "bin/b", "bin/c"].map(PathBuf::from));
    }
}

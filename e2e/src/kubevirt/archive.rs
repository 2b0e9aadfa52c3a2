//! KubeVirt's images and the guest's, as archives that containerd imports.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::guest::{self, Guest};
use super::{base, image};
use crate::layout::{self, Checkout};
use crate::{components, images, process};

/// The attribute of virt-launcher-monitor: `CAP_NET_BIND_SERVICE`, permitted and effective, in the kernel's second form.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Each image, its user, and the programs it has beside the base.
const IMAGES: [(&str, &str, &[&str]); 5] = [
    ("virt-operator", "1001", &["virt-operator"]),
    ("virt-api", "1001", &["virt-api"]),
    ("virt-controller", "1001", &["virt-controller"]),
    ("virt-handler", "", &["virt-handler", "virt-chroot"]),
    // No user: an init container of virt-handler has this image, and must be root.
    (
        "virt-launcher",
        "",
        &[
            "virt-launcher",
            "virt-launcher-monitor",
            "virt-freezer",
            "virt-probe",
            "virt-tail",
            "container-disk",
        ],
    ),
];

/// A layer on the disk.
struct Layer {
    path: PathBuf,
    digest: String,
}

/// The archives.
#[derive(Debug)]
pub(super) struct Archives {
    /// KubeVirt's five images.
    pub(super) kubevirt: PathBuf,
    /// The machines' kernel and first file system.
    pub(super) guest: PathBuf,
    /// The digest of the guest image's configuration.
    pub(super) guest_digest: String,
}

/// Writes what is not there.
pub(super) fn ensure(checkout: &Checkout) -> Result<Archives> {
    let dir = checkout.artefacts().join("kubevirt");
    let root = base::ensure(checkout)?;
    compile_container_disk(checkout)?;
    let guest = guest::ensure(checkout)?;
    let archives = Archives {
        kubevirt: dir.join("kubevirt.tar"),
        guest: dir.join("guest.tar"),
        guest_digest: write_guest(&dir, &guest)?,
    };
    let stamp = dir.join("archived");
    let made = made_from(checkout, &dir)?;
    if archives.kubevirt.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == made) {
        return Ok(archives);
    }
    let version = components::kubevirt_version(checkout)?;
    let base = layer(&dir, "base", |tar| images::add(tar, &root, ""))?;
    let mut out = Output::create(&archives.kubevirt)?;
    for (name, user, programs) in IMAGES {
        let own = layer(&dir, name, |tar| own_layer(checkout, tar, name, programs))?;
        let config = json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": [format!("/usr/bin/{name}")], "User": user, "WorkingDir": "/",
        });
        out.image(&image(name, &version), &config, &[&base, &own])?;
    }
    out.finish()?;
    layout::write(&stamp, made)?;
    Ok(archives)
}

/// What identifies the content: the base's stamp, and size and time of each program.
fn made_from(checkout: &Checkout, dir: &Path) -> Result<String> {
    let mut text = fs::read_to_string(dir.join("base/made")).context("read the base's stamp")?;
    for (_, _, programs) in IMAGES {
        for name in programs {
            let path = checkout.bin().join(name);
            let found =
                fs::metadata(&path).with_context(|| format!("read the metadata of {}", path.display()))?;
            let _ = write!(text, "\n{name} {} {:?}", found.len(), found.modified()?);
        }
    }
    Ok(text)
}

/// KubeVirt's own one in C, which keeps a machine's disk or kernel open.
fn compile_container_disk(checkout: &Checkout) -> Result<()> {
    let program = checkout.bin().join("container-disk");
    if program.exists() {
        return Ok(());
    }
    let source = components::kubevirt_sources(checkout)?.join("cmd/container-disk-v2alpha/main.c");
    process::output(Command::new("gcc").args(["-O2", "-static", "-s", "-o"]).arg(&program).arg(source))
        .map(drop)
}

fn own_layer(
    checkout: &Checkout,
    tar: &mut tar::Builder<Vec<u8>>,
    image: &str,
    programs: &[&str],
) -> Result<()> {
    if image == "virt-launcher" {
        directory(tar, "home/qemu/", 0o755, 107)?;
    }
    for name in programs {
        if *name == "virt-launcher-monitor" {
            capability(tar, &format!("usr/bin/{name}"))?;
        }
        images::add(tar, &checkout.bin().join(name), &format!("usr/bin/{name}"))?;
    }
    Ok(())
}

fn directory(tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, user: u64) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(mode);
    header.set_uid(user);
    header.set_gid(user);
    header.set_mtime(0);
    header.set_size(0);
    tar.append_data(&mut header, name, Cursor::new(b"")).with_context(|| format!("add {name}"))
}

/// Gives the file that is added next an attribute.
fn capability(tar: &mut tar::Builder<Vec<u8>>, name: &str) -> Result<()> {
    let record = pax_record(b"SCHILY.xattr.security.capability", &CAPABILITY);
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(record.len() as u64);
    tar.append_data(&mut header, format!("{name}.pax"), Cursor::new(record)).context("add an attribute")
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn write_guest(dir: &Path, guest: &Guest) -> Result<String> {
    let layer = layer(dir, "guest", |tar| {
        images::add(tar, &guest.kernel, "boot/vmlinuz")?;
        images::add(tar, &guest.initrd, "boot/initrd.img")
    })?;
    let mut out = Output::create(&dir.join("guest.tar"))?;
    let digest = out.image(super::GUEST, &json!({"User": "107", "WorkingDir": "/"}), &[&layer])?;
    out.finish()?;
    Ok(digest)
}

fn layer(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut tar::Builder<Vec<u8>>) -> Result<()>,
) -> Result<Layer> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    directory(&mut tar, "tmp/", 0o1777, 0)?;
    fill(&mut tar).with_context(|| format!("pack {name}"))?;
    let content = tar.into_inner().context("finish the layer")?;
    let path = dir.join("layers").join(format!("{name}.tar"));
    layout::write(&path, &content)?;
    Ok(Layer { path, digest: layout::sha256_hex(&content) })
}

/// An archive of several images, which share layers.
struct Output {
    tar: tar::Builder<File>,
    path: PathBuf,
    part: PathBuf,
    manifest: Vec<Value>,
    written: Vec<String>,
}

impl Output {
    fn create(path: &Path) -> Result<Self> {
        let part = path.with_extension("part");
        let file = File::create(&part).with_context(|| format!("create {}", part.display()))?;
        let (manifest, written) = (Vec::new(), Vec::new());
        Ok(Self { tar: tar::Builder::new(file), path: path.to_owned(), part, manifest, written })
    }

    /// Adds an image, and gives the digest of its configuration.
    fn image(&mut self, reference: &str, config: &Value, layers: &[&Layer]) -> Result<String> {
        let digests: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z", "config": config,
            "rootfs": {"type": "layers", "diff_ids": digests},
        })
        .to_string();
        let digest = layout::sha256_hex(config.as_bytes());
        self.entry(&format!("{digest}.json"), config.as_bytes())?;
        let mut names = Vec::new();
        for layer in layers {
            let name = format!("{}.tar", layer.digest);
            if !self.written.contains(&name) {
                let content =
                    fs::read(&layer.path).with_context(|| format!("read {}", layer.path.display()))?;
                self.entry(&name, &content)?;
                self.written.push(name.clone());
            }
            names.push(name);
        }
        self.manifest
            .push(json!({"Config": format!("{digest}.json"), "RepoTags": [reference], "Layers": names}));
        Ok(digest)
    }

    fn entry(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, name, Cursor::new(content)).with_context(|| format!("add {name}"))
    }

    fn finish(mut self) -> Result<()> {
        let manifest = Value::from(std::mem::take(&mut self.manifest)).to_string();
        self.entry("manifest.json", manifest.as_bytes())?;
        self.tar.finish().context("finish the archive")?;
        fs::rename(&self.part, &self.path).with_context(|| format!("write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_length() {
        assert_eq!(pax_record(b"a", b"b"), b"6 a=b\n");
        let long = pax_record(b"key", &[b'x'; 93]);
        assert_eq!(long.len(), 102);
        assert!(long.starts_with(b"102 key="), "{}", String::from_utf8_lossy(&long));
    }
}

//! Images for all platforms as one OCI archive: `skopeo copy --all oci-archive:...`, `podman load` and
//! `ctr images import` read it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::build::{self, Platform};
use super::{Origin, VERSION, archive};
use crate::containerfile::{self, Stage};
use crate::images;
use crate::layout::{self, Checkout};

/// The images of a release.
pub(super) const NAMES: [&str; 3] = ["macvtap-operator", "macvtap-node-agent", "tapguest"];

/// The content of an archive: every blob under its digest.
#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Adds a blob and returns its descriptor.
    fn add(&mut self, kind: &str, content: Vec<u8>) -> Value {
        let digest = layout::sha256_hex(&content);
        let descriptor = json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"), "size": content.len(),
        });
        let name = format!("blobs/sha256/{digest}");
        if !self.0.iter().any(|(known, _)| *known == name) {
            self.0.push((name, content));
        }
        descriptor
    }
}

/// Writes the archive of an image from the programs that were built.
pub(super) fn write(checkout: &Checkout, name: &str, origin: &Origin, dist: &Path) -> Result<()> {
    let path = checkout.path("images").join(name).join("Containerfile");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut stage = containerfile::last_stage(&text).with_context(|| format!("read {}", path.display()))?;
    // The shell that tests use next to tapguest is not part of a release.
    stage.copies.retain(|(from, _)| build::PROGRAMS.iter().any(|krate| krate.program == from));
    let mut layers = Vec::new();
    for platform in Platform::ALL {
        let out = checkout.artefacts().join("release/image").join(platform.oci());
        layout::remove(&out)?;
        for krate in build::PROGRAMS {
            let program = out.join(krate.program);
            layout::write(&program, build::read(checkout, platform, krate)?)?;
            images::executable(&program)?;
        }
        layers.push((platform, images::layer(&out, &stage)?));
    }
    layout::write(&dist.join(format!("{name}-{VERSION}.oci.tar")), oci(name, origin, &stage, layers)?)
}

fn oci(name: &str, origin: &Origin, stage: &Stage, layers: Vec<(Platform, Vec<u8>)>) -> Result<Vec<u8>> {
    let labels = labels(name, origin);
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    for (platform, layer) in layers {
        let uncompressed = format!("sha256:{}", layout::sha256_hex(&layer));
        let layer = blobs.add("layer.v1.tar+gzip", archive::gzip(&layer)?);
        let config = json!({
            "architecture": platform.oci(), "os": "linux", "created": origin.time,
            "config": {
                "Env": images::env(stage), "Entrypoint": stage.entrypoint, "User": stage.user, "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [uncompressed]},
            "history": [{"created": origin.time, "created_by": format!("images/{name}/Containerfile")}],
        });
        let config = blobs.add("config.v1+json", config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer], "annotations": labels,
        });
        let mut descriptor = blobs.add("manifest.v1+json", manifest.to_string().into_bytes());
        descriptor["platform"] = json!({"architecture": platform.oci(), "os": "linux"});
        manifests.push(descriptor);
    }
    let all = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests, "annotations": labels,
    });
    let mut all = blobs.add("index.v1+json", all.to_string().into_bytes());
    let reference = match &origin.registry {
        Some(registry) => format!("{registry}/{name}:{VERSION}"),
        None => format!("localhost/{name}:{VERSION}"),
    };
    // The first for tools that follow the specification, the second for containerd.
    all["annotations"] =
        json!({"org.opencontainers.image.ref.name": VERSION, "io.containerd.image.name": reference});
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [all],
    });
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    let index = index.to_string();
    let mut files = vec![("oci-layout", 0o644, layout.as_bytes()), ("index.json", 0o644, index.as_bytes())];
    files.extend(blobs.0.iter().map(|(name, content)| (name.as_str(), 0o644, content.as_slice())));
    archive::files(&files)
}

fn labels(name: &str, origin: &Origin) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.description": "Macvtap devices as schedulable resources of Kubernetes",
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.revision": origin.revision,
        "org.opencontainers.image.created": origin.time,
        "org.opencontainers.image.licenses": "Apache-2.0",
    });
    if let Some(source) = &origin.source {
        labels["org.opencontainers.image.source"] = source.as_str().into();
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::{Cursor, Read as _};

    fn origin() -> Origin {
        Origin {
            revision: "0123".to_owned(),
            seconds: 1,
            time: "1970-01-01T00:00:01Z".to_owned(),
            source: Some("https://example.org/source".to_owned()),
            downloads: "https://example.org/downloads".to_owned(),
            registry: None,
        }
    }

    fn archive() -> Vec<u8> {
        let layers = vec![(Platform::Amd64, b"one".to_vec()), (Platform::Arm64, b"two".to_vec())];
        let stage =
            Stage { entrypoint: vec!["/usr/bin/x".to_owned()], user: "1:1".to_owned(), ..Stage::default() };
        oci("x", &origin(), &stage, layers).unwrap()
    }

    #[test]
    fn the_same_programs_give_the_same_archive() {
        assert_eq!(archive(), archive());
    }

    #[test]
    fn every_descriptor_leads_to_a_blob_of_its_digest_and_size_down_to_both_platforms() {
        let archive = archive();
        let mut tar = tar::Archive::new(Cursor::new(&archive));
        let mut files = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        let follow = |descriptor: &Value| -> &[u8] {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(
                (layout::sha256_hex(content).as_str(), json!(content.len())),
                (digest, descriptor["size"].clone())
            );
            content
        };
        let read = |content: &[u8]| -> Value { serde_json::from_slice(content).unwrap() };
        let index = read(follow(&read(&files["index.json"])["manifests"][0]));
        let mut platforms = Vec::new();
        for descriptor in index["manifests"].as_array().unwrap() {
            let manifest = read(follow(descriptor));
            let config = read(follow(&manifest["config"]));
            let mut layer = Vec::new();
            let compressed = follow(&manifest["layers"][0]);
            flate2::read::GzDecoder::new(compressed).read_to_end(&mut layer).unwrap();
            let expected = format!("sha256:{}", layout::sha256_hex(&layer));
            assert_eq!(config["rootfs"]["diff_ids"][0], expected);
            assert_eq!(config["architecture"], descriptor["platform"]["architecture"]);
            assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], "0123");
            platforms.push(config["architecture"].as_str().unwrap().to_owned());
        }
        assert_eq!(platforms, ["amd64", "arm64"]);
    }
}

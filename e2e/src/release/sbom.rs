//! What the programs of a release are made of, as a `CycloneDX` document.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Origin, VERSION, build, licenses};
use crate::layout::{self, Checkout};
use crate::process;

/// Writes the bill of materials, of dependencies that `deny.toml` allows.
pub(super) fn write(checkout: &Checkout, origin: &Origin, dist: &Path) -> Result<()> {
    let metadata = metadata(checkout)?;
    licenses::check(checkout, &metadata)?;
    let roots = build::PROGRAMS.map(|krate| krate.package);
    let text = serde_json::to_string_pretty(&bill(&metadata, &roots, &origin.time)?)?;
    layout::write(&dist.join("sbom.cdx.json"), text + "\n")
}

/// What Cargo knows of all dependencies on the platforms of a release.
pub(super) fn metadata(checkout: &Checkout) -> Result<Value> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--locked", "--format-version", "1"]);
    for platform in build::Platform::ALL {
        command.args(["--filter-platform", &platform.target("release")]);
    }
    let text = process::output(command.current_dir(checkout.root()))?;
    serde_json::from_str(&text).context("read cargo metadata")
}

/// Every package that is linked into these or runs while they are built, and what each depends on.
fn bill(metadata: &Value, roots: &[&str], time: &str) -> Result<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let depends: BTreeMap<String, BTreeSet<String>> =
        list(&metadata["resolve"]["nodes"]).iter().map(|node| (text(&node["id"]), needed(node))).collect();
    let mut open: Vec<String> = packages
        .iter()
        .filter(|(_, package)| roots.contains(&text(&package["name"]).as_str()))
        .map(|(id, _)| id.clone())
        .collect();
    let mut found = BTreeSet::new();
    while let Some(id) = open.pop() {
        if found.insert(id.clone()) {
            open.extend(depends.get(&id).into_iter().flatten().cloned());
        }
    }
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for id in &found {
        let package = packages.get(id).with_context(|| format!("cargo metadata knows no package {id}"))?;
        let reference = |id: &String| packages.get(id).map(purl).unwrap_or_default();
        components.push(json!({
            "type": "library", "bom-ref": purl(package), "purl": purl(package),
            "name": package["name"], "version": package["version"],
            "licenses": [{"expression": package["license"].as_str().unwrap_or("NOASSERTION").replace('/', " OR ")}],
        }));
        let on: Vec<String> = depends.get(id).into_iter().flatten().map(reference).collect();
        dependencies.push(json!({"ref": purl(package), "dependsOn": on}));
    }
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"timestamp": time, "component": {"type": "application", "name": "macvtap-operator", "version": VERSION}},
        "components": components, "dependencies": dependencies,
    }))
}

/// What a package needs beside its tests.
fn needed(node: &Value) -> BTreeSet<String> {
    let all = node["deps"].as_array().into_iter().flatten();
    let used = all.filter(|dependency| {
        let kinds = dependency["dep_kinds"].as_array();
        kinds.into_iter().flatten().any(|kind| kind["kind"] != "dev")
    });
    used.map(|dependency| text(&dependency["pkg"])).collect()
}

fn purl(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_need_is_not_listed() {
        let package =
            |name: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let dependency = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("root"), package("linked"), package("built"), package("tested"), package("other")],
            "resolve": {"nodes": [
                {"id": "root", "deps": [dependency("linked", Value::Null), dependency("tested", json!("dev"))]},
                {"id": "linked", "deps": [dependency("built", json!("build"))]},
            ]},
        });
        let bill = bill(&metadata, &["root"], "1970-01-01T00:00:01Z").unwrap();
        let names: Vec<_> =
            bill["components"].as_array().unwrap().iter().map(|found| found["name"].clone()).collect();
        assert_eq!(names, ["built", "linked", "root"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["dependencies"][2]["dependsOn"], json!(["pkg:cargo/linked@1.0.0"]));
    }
}

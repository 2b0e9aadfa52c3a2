//! The manifests and values in the documentation are taken by a real API server and by the chart.

mod api;

use anyhow::{Context as _, Result, ensure};
use api::Api;
use e2e::layout::Checkout;
use e2e::process;
use std::path::PathBuf;
use std::process::Command;

/// Multus' kind, which many manifests are of.
const MULTUS_KIND: &str = include_str!("api/network-kind.yaml");

/// Kinds of other projects, whose definitions are not here.
const FOREIGN: [&str; 2] = ["apiVersion: nmstate.io/", "apiVersion: kustomize.toolkit.fluxcd.io/"];

/// A pool around a fragment of its spec, which the documentation shows alone.
const AROUND: &str = "apiVersion: macvtap.network.kubevirt.io/v1alpha1\nkind: MacvtapResourcePool\n\
                      metadata: {name: fragment}\n";

/// Every page: its path and its text.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let checkout = Checkout::here();
    let mut paths = vec![checkout.path("README.md")];
    for entry in std::fs::read_dir(checkout.path("docs"))? {
        paths.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    paths.into_iter().map(|path| Ok((path.clone(), std::fs::read_to_string(path)?))).collect()
}

/// The blocks of code in this language.
fn blocks<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    let begin = format!("\n```{language}\n");
    page.split(&begin).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

#[test]
fn every_manifest_in_the_documentation_is_taken_by_the_server() -> Result<()> {
    let api = Api::own()?;
    api.kubectl.apply(MULTUS_KIND)?;
    let kind = "network-attachment-definitions.k8s.cni.cncf.io";
    api.kubectl.run(&["wait", "--for=condition=Established", "--timeout=30s", "crd", kind])?;
    let mut checked = 0;
    for (path, page) in pages()? {
        for manifest in blocks(&page, "yaml").into_iter().flat_map(|block| block.split("\n---\n")) {
            if FOREIGN.iter().any(|foreign| manifest.contains(foreign)) {
                continue;
            }
            let object = if manifest.contains("kind:") {
                manifest.to_owned()
            } else {
                format!("{AROUND}{manifest}\n  links: [{{names: [dp0]}}]\n")
            };
            let mut command = api.kubectl.command();
            command.args(["create", "--dry-run=server", "--validate=strict", "-f", "-"]);
            process::output_with_input(&mut command, &object)
                .with_context(|| format!("{}:\n{object}", path.display()))?;
            checked += 1;
        }
    }
    ensure!(checked >= 12, "only {checked} manifests were found");
    Ok(())
}

#[test]
fn the_chart_has_every_value_that_the_documentation_sets() -> Result<()> {
    let checkout = Checkout::here();
    let chart = checkout.path("charts/macvtap-operator");
    let home = checkout.artefacts().join("helm");
    let mut checked = 0;
    for (path, page) in pages()? {
        let text = page.replace("\\\n", " ");
        for line in text.lines().map(str::trim_start).filter(|line| line.starts_with("helm ")) {
            // A user's own file of values is not here.
            let known = ["--set", "--set-json", "-f"];
            let words: Vec<String> = line.split_whitespace().map(|word| word.replace('\'', "")).collect();
            let options = words.windows(2).filter(|pair| known.contains(&pair[0].as_str()));
            let options = options.filter(|pair| pair[0] != "-f" || pair[1].starts_with("charts/"));
            let mut command = Command::new(checkout.bin().join("helm"));
            command.args(["template", "release"]).arg(&chart).arg("--kube-version=1.35.0");
            command.env("HELM_CACHE_HOME", home.join("cache")).env("HELM_CONFIG_HOME", home.join("config"));
            command.env("HELM_DATA_HOME", home.join("data"));
            for option in options {
                command.args(option);
                checked += 1;
            }
            command.current_dir(checkout.root());
            process::output(&mut command).with_context(|| format!("{}: {line}", path.display()))?;
        }
    }
    ensure!(checked >= 4, "only {checked} values were found");
    Ok(())
}

#[test]
fn every_target_of_make_in_the_documentation_exists() -> Result<()> {
    let makefile = std::fs::read_to_string(Checkout::here().path("Makefile"))?;
    let mut checked = 0;
    for (path, page) in pages()? {
        // In code spans, and at the beginning of a line of a block.
        let spans = page.split('`').filter_map(|span| span.strip_prefix("make "));
        let lines = page.lines().filter_map(|line| line.strip_prefix("make "));
        for target in spans.chain(lines).filter_map(|rest| rest.split_whitespace().next()) {
            let target = target.trim_end_matches('`');
            ensure!(
                makefile.lines().any(|line| line.starts_with(&format!("{target}:"))),
                "{}: make {target} does not exist",
                path.display()
            );
            checked += 1;
        }
    }
    ensure!(checked >= 10, "only {checked} targets were found");
    Ok(())
}

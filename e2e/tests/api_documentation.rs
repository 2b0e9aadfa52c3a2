//! The commands in the documentation name what exists: values of the chart, and targets of make.

use anyhow::{Context as _, Result, ensure};
use e2e::layout::Checkout;
use e2e::process;
use std::path::PathBuf;
use std::process::Command;

/// Every page: its path and its text.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let checkout = Checkout::here();
    let mut paths = vec![checkout.path("README.md")];
    for entry in std::fs::read_dir(checkout.path("docs"))? {
        paths.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    paths.into_iter().map(|path| Ok((path.clone(), std::fs::read_to_string(path)?))).collect()
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

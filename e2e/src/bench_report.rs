//! The tables and plots of `docs/benchmarks.md`, written from what the benches recorded.
//!
//! `docs/benchmarks.json` holds the recorded figures: the page must be what they give, which a test checks. A table stands
//! between `<!-- figures: NAME -->` and `<!-- end of figures -->`.

mod plots;
mod svg;
mod tables;

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::layout::{self, Checkout};
use crate::results;

/// The page and its figures, below the root of the repository.
const PAGE: &str = "docs/benchmarks.md";
const RECORDED: &str = "docs/benchmarks.json";

const BEGIN: &str = "<!-- figures: ";
const END: &str = "<!-- end of figures -->";

/// Recorded figures.
pub(crate) struct Recorded(Value);

impl Recorded {
    fn find(&self, name: &str) -> Option<&Value> {
        self.0["results"].as_array()?.iter().find(|result| result["name"] == name)
    }

    /// One number of a figure.
    pub(crate) fn number(&self, name: &str, key: &str) -> Option<f64> {
        self.find(name)?[key].as_f64()
    }

    /// The run that recorded a figure, in words.
    pub(crate) fn run(&self, name: &str) -> Option<String> {
        let command = self.find(name)?["command"].as_str()?;
        let run = &self.0["runs"][command];
        let text = |key: &str| run[key].as_str().unwrap_or("unknown").to_owned();
        Some(format!(
            "`{command}`, {}, commit {}, {}, load at the end {}.",
            text("date"),
            text("commit"),
            text("machine"),
            text("load_at_end")
        ))
    }
}

/// Records what the last runs of the benches gave, and writes page and plots.
pub fn write(checkout: &Checkout) -> Result<()> {
    let new = read(checkout, results::FILE).context("run a bench first")?;
    let old = read(checkout, RECORDED).unwrap_or_else(|_| json!({}));
    let recorded = combine(&old, &new);
    layout::write(&checkout.path(RECORDED), format!("{recorded:#}\n"))?;
    let recorded = Recorded(recorded);
    let page = fs::read_to_string(checkout.path(PAGE)).with_context(|| format!("read {PAGE}"))?;
    layout::write(&checkout.path(PAGE), fill(&page, &recorded)?)?;
    for (file, plot) in plots::all(&recorded) {
        layout::write(&checkout.path("docs/images").join(file), plot)?;
    }
    Ok(())
}

fn read(checkout: &Checkout, file: &str) -> Result<Value> {
    let text = fs::read_to_string(checkout.path(file)).with_context(|| format!("read {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("read {file}"))
}

/// The recorded figures with new ones in place of those of the same name; only those that the page uses.
fn combine(old: &Value, new: &Value) -> Value {
    let used = tables::names();
    let mut results = Vec::new();
    let mut runs = Map::new();
    for name in used {
        let found = [new, old].into_iter().find_map(|all| {
            let result = all["results"].as_array()?.iter().find(|result| result["name"] == *name)?;
            Some((all, result))
        });
        let Some((all, result)) = found else { continue };
        let command = result["command"].as_str().unwrap_or_default();
        runs.entry(command).or_insert_with(|| all["runs"][command].clone());
        results.push(result.clone());
    }
    json!({"runs": runs, "results": results})
}

/// Replaces what is between the marks.
fn fill(page: &str, recorded: &Recorded) -> Result<String> {
    let mut filled = String::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (name, after) = after.split_once(" -->").context("a mark of figures does not end")?;
        let (_, after) = after.split_once(END).with_context(|| format!("figures {name} do not end"))?;
        let table = tables::render(name, recorded).with_context(|| format!("there are no figures {name}"))?;
        filled.extend([before, BEGIN, name, " -->\n", &table, END]);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_its_plots_are_what_the_recorded_figures_give() {
        let checkout = Checkout::here();
        let recorded = Recorded(read(&checkout, RECORDED).unwrap());
        let page = fs::read_to_string(checkout.path(PAGE)).unwrap();
        assert!(page.contains(BEGIN), "the page has no figures");
        assert_eq!(fill(&page, &recorded).unwrap(), page, "run make bench-report");
        for (file, plot) in plots::all(&recorded) {
            let written = fs::read_to_string(checkout.path("docs/images").join(file)).unwrap();
            assert_eq!(written, plot, "{file}: run make bench-report");
            assert!(page.contains(file), "the page does not show {file}");
        }
    }

    #[test]
    fn new_figures_replace_recorded_ones_and_others_stay() {
        let of = |name: &str, value: u32, command: &str| json!({"runs": {command: {"commit": command}}, "results": [{"name": name, "p50": value, "command": command}]});
        let old = of("cni_add", 1, "old");
        let new = of("cni_add", 2, "new");
        let both = combine(&old, &new);
        assert_eq!(both["results"][0]["p50"], 2);
        assert_eq!(both["runs"], json!({"new": {"commit": "new"}}));
        assert_eq!(combine(&old, &of("not_on_the_page", 1, "new"))["results"][0]["p50"], 1);
    }
}

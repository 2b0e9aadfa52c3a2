//! Licences, bans and sources of all dependencies, as `deny.toml` has them. `cargo deny` reads the same file and also knows
//! advisories, for which it needs the network.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::layout::Checkout;

/// Where crates may come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Fails if a package of `cargo metadata` has another licence, name or source than is allowed.
pub(super) fn check(checkout: &Checkout, metadata: &Value) -> Result<()> {
    let path = checkout.path("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let problems = problems(metadata, &Rules::read(&text)?);
    ensure!(problems.is_empty(), "dependencies against deny.toml: {}", problems.join("; "));
    Ok(())
}

/// What `deny.toml` says, as far as it is checked here.
struct Rules {
    licenses: BTreeSet<String>,
    banned: BTreeSet<String>,
}

impl Rules {
    fn read(text: &str) -> Result<Self> {
        let allow = text.lines().find_map(|line| line.strip_prefix("allow = "));
        let licenses = serde_json::from_str(allow.context("deny.toml has no line `allow = [...]`")?)
            .context("read `allow` of deny.toml")?;
        let banned =
            text.lines().filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.split('"').next());
        let banned: BTreeSet<String> = banned.map(str::to_owned).collect();
        ensure!(!banned.is_empty(), "deny.toml has no line with `{{ crate = ...`");
        Ok(Self { licenses, banned })
    }
}

fn problems(metadata: &Value, rules: &Rules) -> Vec<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().into_iter().flatten();
    let used: BTreeSet<&str> = nodes.filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let used = packages.filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)));
    let mut problems = Vec::new();
    for package in used {
        let word = |key: &str| package[key].as_str().unwrap_or_default();
        let (name, version) = (word("name"), word("version"));
        let license = word("license").replace('/', " OR ");
        if !is_allowed(&license, &rules.licenses) {
            problems.push(format!("{name} {version} has licence {license:?}"));
        }
        if rules.banned.contains(name) {
            problems.push(format!("{name} {version} is banned"));
        }
        // Crates of the workspace have none.
        if package["source"].as_str().is_some_and(|source| source != REGISTRY) {
            problems.push(format!("{name} {version} comes from {}", word("source")));
        }
    }
    problems
}

/// Whether an SPDX expression can be fulfilled with these licences alone.
fn is_allowed(expression: &str, licenses: &BTreeSet<String>) -> bool {
    let expression = expression.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let mut rest = words.as_slice();
    let allowed = any(&mut rest, licenses);
    allowed == Some(true) && rest.is_empty()
}

/// Reads `all OR all ...`; none if it is not an expression.
fn any(rest: &mut &[&str], licenses: &BTreeSet<String>) -> Option<bool> {
    let mut allowed = all(rest, licenses)?;
    while let Some((&"OR", after)) = rest.split_first() {
        *rest = after;
        allowed |= all(rest, licenses)?;
    }
    Some(allowed)
}

/// Reads `one AND one ...`, which binds closer.
fn all(rest: &mut &[&str], licenses: &BTreeSet<String>) -> Option<bool> {
    let mut allowed = one(rest, licenses)?;
    while let Some((&"AND", after)) = rest.split_first() {
        *rest = after;
        allowed &= one(rest, licenses)?;
    }
    Some(allowed)
}

/// Reads a licence, one with an exception, or an expression in parentheses.
fn one(rest: &mut &[&str], licenses: &BTreeSet<String>) -> Option<bool> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    if *first == "(" {
        let allowed = any(rest, licenses)?;
        let (&")", after) = rest.split_first()? else { return None };
        *rest = after;
        return Some(allowed);
    }
    if let [with, exception, after @ ..] = *rest
        && *with == "WITH"
    {
        *rest = after;
        return Some(licenses.contains(&format!("{first} WITH {exception}")));
    }
    Some(licenses.contains(*first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::sbom;
    use serde_json::json;

    #[test]
    fn every_dependency_has_a_licence_a_name_and_a_source_that_are_allowed() {
        let checkout = Checkout::here();
        check(&checkout, &sbom::metadata(&checkout).unwrap()).unwrap();
    }

    #[test]
    fn an_expression_is_fulfilled_by_what_is_allowed() {
        let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "ISC"].map(str::to_owned).into();
        for expression in [
            "MIT",
            "GPL-3.0 OR MIT",
            "(GPL-3.0 OR MIT) AND ISC",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0",
        ] {
            assert!(is_allowed(expression, &allowed), "{expression}");
        }
        for expression in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "MIT OR", "(MIT", "MIT ISC"] {
            assert!(!is_allowed(expression, &allowed), "{expression}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let rules = Rules::read("allow = [\"MIT\"]\ndeny = [\n  { crate = \"bad\" },\n]\n").unwrap();
        let package = |name: &str, license: &str, source: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": license, "source": source});
        let metadata = json!({
            "packages": [
                package("good", "MIT", REGISTRY),
                package("bad", "GPL-3.0", "git+https://example.org"),
                package("unused", "GPL-3.0", REGISTRY),
            ],
            "resolve": {"nodes": [{"id": "good"}, {"id": "bad"}]},
        });
        let expected = [
            "bad 1.0.0 has licence \"GPL-3.0\"",
            "bad 1.0.0 is banned",
            "bad 1.0.0 comes from git+https://example.org",
        ];
        assert_eq!(problems(&metadata, &rules), expected);
    }
}

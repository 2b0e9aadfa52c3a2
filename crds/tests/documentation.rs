//! The documentation refers to what exists: files, sections, metrics, and one runbook for each alert.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a missing file or field fails the test, which is what it is for"
)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every page, by its path below the root.
fn pages() -> BTreeMap<String, String> {
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
    let mut pages: BTreeMap<String, String> = top.map(|name| (name.to_owned(), read(name))).into();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                pages.insert(name.clone(), read(&name));
            }
        }
    }
    pages
}

/// The text without code blocks and code spans, whose brackets are no links.
fn prose(page: &str) -> String {
    let mut is_code = false;
    let mut text = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            text.extend(line.split('`').step_by(2));
            text.push('\n');
        }
    }
    text
}

/// The targets of links and pictures.
fn targets(page: &str) -> Vec<String> {
    let text = prose(page);
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook form them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut anchors = BTreeSet::new();
    for line in page.lines() {
        is_code ^= line.starts_with("```");
        let title = line.trim_start_matches('#');
        if is_code || !line.starts_with('#') || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().to_lowercase().replace(' ', "-");
        anchors.insert(kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect());
    }
    anchors
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_section_that_exist() {
    let pages = pages();
    let mut broken = Vec::new();
    let mut checked = 0;
    for (name, page) in &pages {
        for target in targets(page) {
            if target.contains("://") {
                continue;
            }
            checked += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = match path {
                "" => root().join(name),
                _ => root().join(name).parent().unwrap().join(path),
            };
            let Ok(file) = file.canonicalize() else {
                broken.push(format!("{name}: {target}: no such file"));
                continue;
            };
            if !anchor.is_empty() && !anchors(&std::fs::read_to_string(&file).unwrap()).contains(anchor) {
                broken.push(format!("{name}: {target}: no such section"));
            }
        }
    }
    assert!(checked > 50, "only {checked} links were found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_site_has_every_page() {
    let summary = read("docs/SUMMARY.md");
    for name in pages().keys().filter(|name| *name != "docs/SUMMARY.md") {
        let link = name.strip_prefix("docs/").map_or_else(|| format!("../{name}"), str::to_owned);
        assert!(summary.contains(&format!("]({link})")), "docs/SUMMARY.md does not list {name}");
    }
}

#[test]
fn every_file_of_the_repository_that_a_page_names_exists() {
    let folders: BTreeSet<String> = std::fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // What is built is not part of the repository.
        .filter(|name| !matches!(name.as_str(), "target" | "dist"))
        .collect();
    let mut missing = Vec::new();
    let mut checked = 0;
    for (name, page) in pages() {
        for line in page.lines() {
            for word in line.split('`').skip(1).step_by(2) {
                let is_path = word.split_once('/').is_some_and(|(folder, _)| folders.contains(folder));
                if !is_path || word.contains(|c: char| c.is_whitespace() || "*<{$[:".contains(c)) {
                    continue;
                }
                checked += 1;
                if !root().join(word).exists() {
                    missing.push(format!("{name}: {word}"));
                }
            }
        }
    }
    assert!(checked > 20, "only {checked} paths were found");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The rules of the alerts.
fn alerts() -> Vec<Value> {
    let file: Value = serde_yaml::from_str(&read("charts/macvtap-operator/files/alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn every_alert_has_a_runbook_and_a_test_and_every_runbook_an_alert() {
    let page = read("docs/runbooks.md");
    let sections: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let tests = read("e2e/tests/alerts/rules_test.yaml");
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap().to_owned();
        let link = format!("docs/runbooks.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], link.as_str(), "{name}");
        for annotation in ["summary", "description"] {
            assert!(alert["annotations"][annotation].is_string(), "{name} has no {annotation}");
        }
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "no test fires {name}");
        names.insert(name);
    }
    assert_eq!(names.iter().map(String::as_str).collect::<BTreeSet<_>>(), sections);
}

/// What docs/operations.md says of each metric: its labels, and its whole row. Tests of operator and agent compare the
/// names with those that the programs serve.
fn documented() -> BTreeMap<String, (Vec<String>, String)> {
    let mut metrics = BTreeMap::new();
    for row in read("docs/operations.md").lines().filter(|line| line.starts_with("| `macvtap_")) {
        let mut cells = row.split('|').skip(1);
        let names = cells.next().unwrap().to_owned();
        let labels = cells.next().unwrap().split(',').map(|label| label.trim().to_owned()).collect();
        let entry: (Vec<String>, String) = (labels, row.to_owned());
        for name in names.split('`').skip(1).step_by(2) {
            metrics.insert(name.to_owned(), entry.clone());
        }
    }
    metrics
}

/// Every metric that a query names, with its matchers.
fn selectors(query: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    for (start, _) in query.match_indices("macvtap_") {
        let rest = &query[start..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let matchers = rest[end..].strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let matchers = matchers.map(|(inner, _)| inner.split(',').filter_map(matcher).collect());
        // In a log filter it is the name of a crate.
        if rest[..end] != *"macvtap_operator" {
            found.push((rest[..end].to_owned(), matchers.unwrap_or_default()));
        }
    }
    found
}

fn matcher(text: &str) -> Option<(String, String)> {
    let (label, value) = text.split_once('=')?;
    Some((label.to_owned(), value.trim_start_matches('~').trim_matches('"').to_owned()))
}

#[test]
fn rules_dashboard_and_runbooks_name_only_metrics_labels_and_values_that_exist() {
    let documented = documented();
    let mut queries: Vec<String> =
        alerts().iter().map(|alert| alert["expr"].as_str().unwrap().to_owned()).collect();
    let dashboard: Value =
        serde_json::from_str(&read("charts/macvtap-operator/files/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    queries.extend(targets.map(|target| target["expr"].as_str().unwrap().to_owned()));
    queries.extend(pages().values().flat_map(|page| page.split('`').map(str::to_owned).collect::<Vec<_>>()));
    let mut problems = Vec::new();
    let mut checked = 0;
    for (name, matchers) in queries.iter().flat_map(|query| selectors(query)) {
        let plain = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let Some((labels, row)) = documented.get(plain.unwrap_or(&name)) else {
            problems.push(format!("docs/operations.md does not list {name}"));
            continue;
        };
        checked += 1;
        for (label, value) in matchers {
            let is_histogram = plain.is_some() && label == "le";
            if !is_histogram && !labels.contains(&label) {
                problems.push(format!("{name} has no label {label}"));
            }
            // Names of pools and codes of answers are no closed set.
            let is_open = matches!(label.as_str(), "pool" | "resource" | "code" | "method" | "le");
            let words = row.split(|c: char| !c.is_ascii_alphanumeric()).collect::<Vec<_>>();
            if !is_open && !words.contains(&value.as_str()) {
                problems.push(format!("{name} has no {label} {value}"));
            }
        }
    }
    assert!(checked > 60, "only {checked} uses of metrics were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Keys of an object that the schema does not know, and values that are none of an enumeration.
fn strangers(path: &str, value: &Value, schema: &Value, found: &mut Vec<String>) {
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        found.push(format!("{path}: {value}"));
    }
    match value {
        Value::Object(fields) => {
            let is_open = schema["x-kubernetes-preserve-unknown-fields"] == true;
            for (key, inner) in fields {
                let path = format!("{path}.{key}");
                let known = [&schema["properties"][key], &schema["additionalProperties"]];
                match known.into_iter().find(|schema| schema.is_object()) {
                    Some(schema) => strangers(&path, inner, schema, found),
                    None if is_open => {}
                    None => found.push(format!("{path}: unknown")),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                strangers(&format!("{path}[]"), item, &schema["items"], found);
            }
        }
        _ => {}
    }
}

#[test]
fn manifests_are_yaml_and_pools_have_only_fields_and_values_of_the_api() {
    let crds = macvtap_crds::generate::crds().unwrap();
    let (_, crd) = crds.iter().find(|(name, _)| name.starts_with("macvtapresourcepools")).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut problems = Vec::new();
    let mut checked = 0;
    for (name, page) in pages() {
        let blocks = page.split("\n```yaml\n").skip(1).filter_map(|rest| rest.split("\n```").next());
        for manifest in blocks.flat_map(|block| block.split("\n---\n")) {
            let object: Value =
                serde_yaml::from_str(manifest).unwrap_or_else(|error| panic!("{name}: {error}:\n{manifest}"));
            // A block without a kind shows a part of a pool.
            if object["kind"].is_string() && object["kind"] != "MacvtapResourcePool" {
                continue;
            }
            strangers(&format!("{name}: spec"), &object["spec"], schema, &mut problems);
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} pools were found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

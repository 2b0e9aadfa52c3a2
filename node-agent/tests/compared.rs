//! What the documentation says is tested is tested.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Names of all functions below a directory that are tests.
fn tests(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            tests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let after = text.split("#[test]").skip(1);
            let names =
                after.filter_map(|rest| rest.split_once("fn ")?.1.split_once('(').map(|(name, _)| name));
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_the_comparison_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut existing = BTreeSet::new();
    tests(&root, &mut existing);
    let text = fs::read_to_string(root.join("docs/compared.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let named: BTreeSet<&str> =
        rows.flat_map(|row| row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 30, "the table was not read: {named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !existing.contains(**name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

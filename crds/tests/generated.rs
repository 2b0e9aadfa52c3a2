//! The generated files are those the types yield.

use std::path::Path;

#[test]
fn the_files_in_the_repository_are_those_the_types_yield() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for directory in macvtap_crds::generate::DIRECTORIES {
        let directory = root.join(directory);
        let mut expected: Vec<_> = macvtap_crds::generate::files().unwrap();
        let mut found: Vec<(String, String)> = std::fs::read_dir(&directory)
            .unwrap_or_else(|e| panic!("{}: {e}; run `make generate`", directory.display()))
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                (
                    path.file_name().unwrap().to_string_lossy().into_owned(),
                    std::fs::read_to_string(path).unwrap(),
                )
            })
            .collect();
        expected.sort();
        found.sort();
        assert!(
            expected == found,
            "{} is not what the types yield; run `make generate` (cargo run -p macvtap-crds --bin crdgen)",
            directory.display()
        );
    }
}

#[test]
fn the_api_reference_is_what_the_types_yield() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let found = std::fs::read_to_string(root.join(macvtap_crds::reference::PATH)).unwrap();
    assert!(
        found == macvtap_crds::reference::page().unwrap(),
        "{} is not what the types yield; run `make generate`",
        macvtap_crds::reference::PATH
    );
}

#[test]
fn yaml_and_types_hold_the_same_values() {
    for ((_, value), (name, text)) in
        macvtap_crds::generate::crds().unwrap().into_iter().zip(macvtap_crds::generate::files().unwrap())
    {
        let read: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(value, read, "{name}");
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{name} has trailing spaces");
    }
}

#[test]
fn words_that_look_like_booleans_are_quoted() {
    for word in ["on", "off", "yes", "no", "y", "n", "true", "null", "~", "1", "1.0", "0x10"] {
        let text = macvtap_crds::generate::to_yaml(&serde_json::json!({ "default": word, word: 1 })).unwrap();
        for quoted in [format!("default: \"{word}\""), format!("\"{word}\": 1")] {
            let single = quoted.replace('"', "'");
            assert!(text.contains(&quoted) || text.contains(&single), "{word:?} is written as\n{text}");
        }
    }
}

#[test]
fn no_field_is_without_a_description_or_without_a_bound() {
    fn check(path: &str, schema: &serde_json::Value, problems: &mut Vec<String>) {
        let has = |key: &str| schema.get(key).is_some();
        match schema.get("type").and_then(|t| t.as_str()) {
            Some("string") if !(has("maxLength") || has("enum") || has("format")) => {
                problems.push(format!("{path}: a string without maxLength"));
            }
            Some("array") if !has("maxItems") => problems.push(format!("{path}: a list without maxItems")),
            Some("array") if !has("x-kubernetes-list-type") => {
                problems.push(format!("{path}: a list without a list type"));
            }
            _ => {}
        }
        for (name, property) in schema.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
            let path = format!("{path}.{name}");
            if property.get("description").is_none() {
                problems.push(format!("{path}: no description"));
            }
            check(&path, property, problems);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(key) {
                check(&format!("{path}[]"), inner, problems);
            }
        }
    }
    let mut problems = Vec::new();
    for (name, crd) in macvtap_crds::generate::crds().unwrap() {
        for half in ["spec", "status"] {
            let schema =
                crd.pointer(&format!("/spec/versions/0/schema/openAPIV3Schema/properties/{half}")).unwrap();
            check(&format!("{name}: {half}"), schema, &mut problems);
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

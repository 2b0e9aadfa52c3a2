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
        let halves = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        assert!(halves["spec"].is_object(), "{name} has no spec");
        for half in ["spec", "status"] {
            check(&format!("{name}: {half}"), &halves[half], &mut problems);
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The largest value that each integer of a schema must not exceed, by its path: `format` is that of its Rust type.
fn integers(path: &str, schema: &serde_json::Value, found: &mut std::collections::BTreeMap<String, u64>) {
    let is_mixed = schema["x-kubernetes-int-or-string"] == true;
    if schema["type"] == "integer" || is_mixed {
        let most = match schema["format"].as_str() {
            Some("uint8") => u8::MAX.into(),
            Some("uint16") => u16::MAX.into(),
            Some("uint32") => u32::MAX.into(),
            Some("uint" | "uint64") => u64::MAX,
            Some("int64") => i64::MAX.cast_unsigned(),
            // The type of IntOrString.
            None if is_mixed => i32::MAX.cast_unsigned().into(),
            // Of another format nothing is known, so that no bound is small enough.
            _ => 0,
        };
        found.insert(path.to_owned(), most);
    }
    match schema {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                integers(&format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), value, found);
            }
        }
        serde_json::Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                integers(&format!("{path}/{i}"), value, found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_integer_has_a_maximum_that_its_type_holds() {
    use kube::CustomResourceExt;
    use macvtap_crds::v1alpha1::{MacvtapNodeConfig, MacvtapNodeState, MacvtapResourcePool};
    let types = [MacvtapResourcePool::crd(), MacvtapNodeState::crd(), MacvtapNodeConfig::crd()];
    let (mut found, mut wrong) = (0, Vec::new());
    for (types, (name, crd)) in types.iter().zip(macvtap_crds::generate::crds().unwrap()) {
        let mut most = std::collections::BTreeMap::new();
        integers("", &serde_json::to_value(types).unwrap()["spec"]["versions"][0]["schema"], &mut most);
        for (path, most) in most {
            found += 1;
            let bound = crd["spec"]["versions"][0]["schema"]
                .pointer(&path)
                .unwrap()
                .get("maximum")
                .and_then(serde_json::Value::as_u64);
            if bound.is_none_or(|bound| bound > most) {
                wrong.push(format!("{name} {path}: {bound:?}, and its type holds {most}"));
            }
        }
    }
    assert!(found > 40, "only {found} integers were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

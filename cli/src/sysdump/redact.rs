//! Leaves out what might be a secret. Pure.

use serde_json::Value;

/// What stands in the place of a secret.
const REDACTED: &str = "REDACTED";

/// Names of values that are secrets, in lower case.
const SECRET_WORDS: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
    "authorization",
];

/// Annotations that repeat whole objects.
const REPEATS: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// An object without managers, repetitions and values that look like secrets.
pub(super) fn object(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|key, _| !REPEATS.contains(&key.as_str()));
        }
    }
    clean(&mut object, is_secret);
    object
}

fn clean(value: &mut Value, is_secret: fn(&str) -> bool) {
    match value {
        Value::Object(fields) => {
            // An environment variable: its name stands beside its value.
            let named = fields.get("name").and_then(Value::as_str).is_some_and(is_secret);
            for (key, value) in fields.iter_mut() {
                if is_secret(key) || (named && key == "value") {
                    hide(value);
                } else {
                    clean(value, is_secret);
                }
            }
        }
        Value::Array(items) => clean_list(items, is_secret),
        // The configuration of a network is JSON within a string.
        Value::String(text) if text.trim_start().starts_with('{') => {
            if let Ok(mut inner) = serde_json::from_str::<Value>(text) {
                clean(&mut inner, is_secret_of_network);
                *text = inner.to_string();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A list, in which an argument may stand behind its name.
fn clean_list(items: &mut [Value], is_secret: fn(&str) -> bool) {
    let mut is_named = false;
    for item in items {
        if is_named {
            hide(item);
        } else {
            clean(item, is_secret);
        }
        let name = item.as_str().filter(|word| word.starts_with('-') && !word.contains('='));
        is_named = !is_named && name.is_some_and(is_secret);
    }
}

/// Hides every value; the names stay.
fn hide(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(hide),
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::String(_) | Value::Number(_) => *value = REDACTED.into(),
        Value::Null | Value::Bool(_) => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    // Where a secret is, is none.
    let place = ["file", "path", "name", "mounttoken", "serviceaccounttoken", "seconds", "ref"];
    let is_word = name.ends_with("pass") || SECRET_WORDS.iter().any(|word| name.contains(word));
    is_word && !place.iter().any(|end| name.ends_with(end))
}

/// Whether a key of a network's configuration is that of a secret. Elsewhere `key` is half of a selector.
fn is_secret_of_network(name: &str) -> bool {
    is_secret(name) || name.eq_ignore_ascii_case("key")
}

/// Text without keys, tokens and credentials of requests and URLs: a JSON Web Token begins with `eyJ`.
pub(super) fn text(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN ") && line.contains("PRIVATE KEY");
        if begins && !in_key {
            clean.push_str(REDACTED);
            clean.push('\n');
        }
        let hidden = in_key || begins;
        in_key = hidden && !line.contains("-----END ");
        if !hidden {
            clean_line(line, &mut clean);
        }
    }
    clean
}

fn clean_line(line: &str, clean: &mut String) {
    let mut is_after_scheme = false;
    for word in line.split_inclusive(char::is_whitespace) {
        let bare = word.trim_end();
        if bare.contains("eyJ") || (is_after_scheme && !bare.is_empty()) {
            clean.push_str(REDACTED);
            clean.push_str(&word[bare.len()..]);
        } else if let Some((name, value)) = bare.split_once('=')
            && is_secret(name)
            && !value.is_empty()
        {
            clean.extend([name, "=", REDACTED, &word[bare.len()..]]);
        } else {
            clean_url(word, clean);
        }
        is_after_scheme = ["Bearer", "Basic"].iter().any(|scheme| bare.ends_with(scheme));
    }
}

/// A word without the user and password of a URL.
fn clean_url(word: &str, clean: &mut String) {
    let mut rest = word;
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let authority = after.find(['/', '"', '\'']).unwrap_or(after.len());
        rest = match after[..authority].rfind('@') {
            Some(at) => {
                clean.push_str(REDACTED);
                &after[at..]
            }
            None => after,
        };
    }
    clean.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_that_look_like_secrets_are_left_out() {
        let config = json!({"type": "macvtap", "ipam": {"password": "p"}}).to_string();
        let clean = object(json!({
            "metadata": {"name": "x", "managedFields": [1], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "all", "a": "b"}},
            "spec": {
                "config": config,
                "env": [{"name": "DB_PASSWORD", "value": "p"}, {"name": "NODE_NAME", "value": "n1"}],
                "secretName": "tls", "token": "t", "tokens": ["t", 7], "authorization": {"user": "u"},
            },
        }));
        assert_eq!(
            clean["spec"]["env"],
            json!([{"name": "DB_PASSWORD", "value": "REDACTED"}, {"name": "NODE_NAME", "value": "n1"}])
        );
        assert!(
            !clean.to_string().contains("\"p\"")
                && clean["spec"]["config"].as_str().unwrap().contains("REDACTED")
        );
        assert_eq!(
            (&clean["spec"]["secretName"], &clean["spec"]["token"]),
            (&json!("tls"), &json!("REDACTED"))
        );
        assert_eq!(clean["spec"]["tokens"], json!(["REDACTED", "REDACTED"]));
        assert_eq!(clean["spec"]["authorization"], json!({"user": "REDACTED"}));
        assert_eq!(clean["metadata"], json!({"name": "x", "annotations": {"a": "b"}}));
    }

    #[test]
    fn secrets_among_arguments_and_in_texts_are_left_out() {
        let config = json!({"type": "whereabouts", "ipam": {"key": "SECRET1"}}).to_string();
        let clean = object(json!({
            "args": ["--token=SECRET2", "--password", "SECRET3", "--log-level=info"],
            "env": [{"name": "PGPASS", "value": "SECRET4"}], "note": "password=SECRET5",
            "matchExpressions": [{"key": "zone", "operator": "Exists"}], "config": config,
        }));
        let clean = text(&serde_yaml::to_string(&clean).unwrap());
        assert!(!clean.contains("SECRET"), "{clean}");
        assert!(clean.contains("key: zone") && clean.contains("--log-level=info"), "{clean}");
        assert_eq!(text("login password=x user=y\n"), "login password=REDACTED user=y\n");
    }

    #[test]
    fn tokens_in_logs_are_left_out() {
        assert_eq!(text("a Bearer eyJhbGciOi.x.y b\nnext\n"), "a Bearer REDACTED b\nnext\n");
        assert_eq!(text("Authorization: Bearer abc123\n"), "Authorization: Bearer REDACTED\n");
        let key = "a\n-----BEGIN EC PRIVATE KEY-----\nMHcC\nAQEE\n-----END EC PRIVATE KEY-----\nb\n";
        assert_eq!(text(key), "a\nREDACTED\nb\n");
        let proxy = "value: \"http://user:p@w@proxy:3128/x\" see https://docs/a@b\n";
        assert_eq!(text(proxy), "value: \"http://REDACTED@proxy:3128/x\" see https://docs/a@b\n");
    }
}

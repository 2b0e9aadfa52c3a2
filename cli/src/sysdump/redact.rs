//! Leaves out what might be a secret. Pure.

use serde_json::Value;

/// What stands in the place of a secret.
const REDACTED: &str = "REDACTED";

/// Names of values that are secrets, in lower case.
const SECRET_WORDS: [&str; 6] = ["password", "passwd", "secret", "token", "apikey", "privatekey"];

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
    clean(&mut object);
    object
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // An environment variable: its name stands beside its value.
            let named = fields.get("name").and_then(Value::as_str).is_some_and(is_secret);
            for (key, value) in fields.iter_mut() {
                if value.is_string() && (is_secret(key) || (named && key == "value")) {
                    *value = REDACTED.into();
                } else {
                    clean(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        // The configuration of a network is JSON within a string.
        Value::String(text) if text.trim_start().starts_with('{') => {
            if let Ok(mut inner) = serde_json::from_str::<Value>(text) {
                clean(&mut inner);
                *text = inner.to_string();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    // Where a secret is, is none.
    let place = ["file", "path", "name", "mounttoken", "serviceaccounttoken", "seconds", "ref"];
    SECRET_WORDS.iter().any(|word| name.contains(word)) && !place.iter().any(|end| name.ends_with(end))
}

/// Text without credentials of requests and tokens: a JSON Web Token begins with `eyJ`.
pub(super) fn text(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if line.contains("eyJ") || line.contains("Bearer ") || line.contains("PRIVATE KEY") {
            let words = line.split_inclusive(char::is_whitespace).map(|word| {
                let is_token = word.contains("eyJ") || word.len() > 200;
                if is_token {
                    format!("{REDACTED}{}", if word.ends_with('\n') { "\n" } else { " " })
                } else {
                    word.to_owned()
                }
            });
            clean.extend(words);
        } else {
            clean.push_str(line);
        }
    }
    clean
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
                "secretName": "tls", "token": "t",
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
        assert_eq!(clean["metadata"], json!({"name": "x", "annotations": {"a": "b"}}));
    }

    #[test]
    fn tokens_in_logs_are_left_out() {
        assert_eq!(text("a Bearer eyJhbGciOi.x.y b\nnext\n"), "a Bearer REDACTED b\nnext\n");
    }
}

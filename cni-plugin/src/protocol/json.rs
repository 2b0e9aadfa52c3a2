//! JSON as Go's decoder takes it. Runtimes and the reference plugins are Go programs: what passes there must not stop a pod
//! here, least of all from being deleted.
//!
//! `serde_json` refuses four things that `encoding/json` accepts: values nested deeper than 128, a surrogate that is one
//! half of a pair, bytes that are not UTF-8, and numbers beyond `f64` under a key that nobody reads. A text that it refuses
//! is rewritten once: such a half and such bytes become U+FFFD, as in Go, and what is too deep or too large becomes `null`.

use serde_json::{Map, Value};
use std::borrow::Cow;

/// Nesting that is kept; `serde_json`'s own limit is 128.
const DEPTH_MAX: usize = 100;

/// Reads a JSON text.
///
/// # Errors
/// When Go would refuse it too. The message is about the text as it came.
pub fn decode(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(text).or_else(|error| {
        let text = String::from_utf8_lossy(text);
        serde_json::from_str(&rewritten(&text)).map_err(|_| error)
    })
}

/// The text without what only `serde_json` refuses. A text that is not JSON stays so.
fn rewritten(text: &str) -> String {
    let (mut out, mut rest, mut depth) = (String::with_capacity(text.len()), text, 0_usize);
    while let Some(first) = rest.chars().next() {
        let (token, after) = rest.split_at(length(rest, first));
        rest = after;
        let deep = depth > DEPTH_MAX;
        match first {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let is_too_deep = deep || depth > DEPTH_MAX;
        match first {
            // The first bracket beyond the limit stands for all that is inside it.
            '[' | '{' if is_too_deep && !deep => out.push_str("null"),
            _ if is_too_deep => {}
            '"' => out.push_str(&paired(token)),
            '-' | '0'..='9' if token.parse().is_ok_and(f64::is_infinite) => out.push_str("null"),
            _ => out.push_str(token),
        }
    }
    out
}

/// How long the token is that begins with this character: a string, a number, or one character.
fn length(text: &str, first: char) -> usize {
    match first {
        '"' => {
            let mut escaped = false;
            let end = text.bytes().skip(1).position(|byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            });
            end.map_or(text.len(), |place| place + 2)
        }
        '-' | '0'..='9' => {
            let part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
            text.bytes().position(|byte| !part(byte)).unwrap_or(text.len())
        }
        _ => first.len_utf8(),
    }
}

/// A string's text with U+FFFD for each surrogate that is not one of a pair.
fn paired(text: &str) -> Cow<'_, str> {
    if !text.contains("\\u") {
        return text.into();
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(place) = rest.find('\\') {
        let (before, escape) = rest.split_at(place);
        out.push_str(before);
        // An escape is two characters, or six. One that is cut off is left to the decoder, which refuses it.
        let next = escape.chars().nth(1).map_or(1, |second| 1 + second.len_utf8());
        let (kept, length) = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (escape.get(..12), 12),
            (Some(0xD800..=0xDFFF), _) => (Some("\\ufffd"), 6),
            (Some(_), _) => (escape.get(..6), 6),
            (None, _) => (escape.get(..next), next),
        };
        out.push_str(kept.unwrap_or_default());
        rest = escape.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    out.into()
}

/// The UTF-16 unit of an escape `\uXXXX` that the text begins with.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

/// Gives these keys of an object the spelling that is read here: Go's decoder, and so every other plugin, reads them in upper
/// and lower case alike. A key in the right spelling wins.
pub fn respell(object: &mut Map<String, Value>, known: &[&str]) {
    for known in known {
        let other = |key: &&String| key.eq_ignore_ascii_case(known) && key != known;
        let Some(key) = object.keys().find(other).cloned() else { continue };
        if let Some(value) = object.remove(&key) {
            object.entry(*known).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_go_accepts_is_accepted() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let read = |inner: &[u8]| {
            let text = [br#"{"name": "n", "note": "#.as_slice(), inner, b", \"last\": [1, {}]}"].concat();
            let value = decode(&text).unwrap();
            assert_eq!((&value["name"], &value["last"]), (&json!("n"), &json!([1, {}])));
            value["note"].clone()
        };
        for depth in [1, 99, 100, 127, 130, 9_000] {
            read(nested(depth).as_bytes());
        }
        read(format!("{{\"a\": {}, \"b\": {}}}", nested(120), nested(120)).as_bytes());
        assert_eq!(read(br#""a\ud800b""#), "a\u{fffd}b");
        assert_eq!(read(br#""\udc00\ud83d\ude00\\ud800\"""#), "\u{fffd}\u{1F600}\\ud800\"");
        assert_eq!(read(b"\"caf\xe9\""), "caf\u{fffd}");
        assert_eq!(read(b"[1e400, -1e400, 1e3]"), json!([null, null, 1000.0]));
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            "{",
            "{\"a\": tru}",
            "[1,]",
            "\"\\x\"",
            "{\"a\": \"\\ud8\"}",
            "{} {}",
            "[1e]",
            "nul",
            "[[",
            "]",
        ] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
        assert!(decode(format!("{}{}", "[".repeat(130), "]".repeat(131)).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_rewritten_means_the_same(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[\\[\\]{}\",:0-9eE.\\\\ud8a ]{0,60}") {
            let _ = decode(&bytes);
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(serde_json::from_str::<Value>(&rewritten(&text)).ok(), Some(value));
            }
        }
    }
}

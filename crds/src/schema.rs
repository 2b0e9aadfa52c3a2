//! Pieces of schema that no Rust type yields, and the tidying that makes generated schemas ones Kubernetes likes.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

/// The largest whole number that every reader of JSON holds exactly: the API server keeps bounds as 64-bit floats.
const WHOLE_MAX: i64 = (1 << 53) - 1;

/// A label selector with bounds, so that rules next to it stay within the API server's cost limits.
pub(crate) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "description": "Labels that must all be there with these values.",
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": { "type": "string", "maxLength": 63 },
            },
            "matchExpressions": {
                "description": "Conditions that must all hold.",
                "type": "array",
                "maxItems": 32,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "description": "Key of the label.", "type": "string", "minLength": 1, "maxLength": 317 },
                        "operator": {
                            "description": "In, NotIn, Exists or DoesNotExist.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "Values for In and NotIn; none for Exists and DoesNotExist.",
                            "type": "array",
                            "maxItems": 64,
                            "x-kubernetes-list-type": "atomic",
                            "items": { "type": "string", "maxLength": 63 },
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
                        "message": "In and NotIn need values, Exists and DoesNotExist take none",
                    }],
                },
            },
        },
    })
}

/// Configuration of another CNI plugin: its `type` and whatever it understands.
pub(crate) fn plugin(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["type"],
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "type": {
                "description": "Name of the plugin's executable.",
                "type": "string",
                "maxLength": 64,
                "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            },
        },
    })
}

/// Configurations of other CNI plugins, in the order they run.
pub(crate) fn plugins(generator: &mut SchemaGenerator) -> Schema {
    let items = plugin(generator);
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 8,
        "x-kubernetes-list-type": "atomic",
        "items": items,
    })
}

/// Kubernetes' conditions, as a map by type.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": { "description": "What the condition is about.", "type": "string", "maxLength": 316 },
                "status": { "description": "Whether it holds.", "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": {
                    "description": "The generation of the object that this was found for.",
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                },
                "lastTransitionTime": {
                    "description": "When status changed last.",
                    "type": "string",
                    "format": "date-time",
                },
                "reason": {
                    "description": "Why, in one word for programs.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": { "description": "Why, for people.", "type": "string", "maxLength": 32768 },
            },
        },
    })
}

/// Kubernetes' conditions as one value: their only writer replaces them together, and the API server need not track an
/// owner for each field.
pub(crate) fn atomic_conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = conditions(generator);
    schema.remove("x-kubernetes-list-map-keys");
    schema.insert("x-kubernetes-list-type".to_owned(), "atomic".into());
    schema
}

/// A number of nodes, or a share of them in percent; at least one of them, at most all.
pub(crate) fn batch(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 1,
        "maximum": i32::MAX,
        "pattern": "^([1-9][0-9]?|100)%$",
    })
}

/// Removes what serde's view of the world leaves in a schema: `nullable` (in Kubernetes an absent field is absent, and
/// null in a nullable one would not get its default), titles, number formats the API server does not know, and the
/// fraction of whole numbers. Gives integers the bound of their Rust type: an object that the API server takes must be one
/// that our programs can read.
pub(crate) fn tidy(schema: &mut Value) {
    match schema {
        Value::Number(number) => {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "bounds in our schemas are small whole numbers"
            )]
            if let Some(whole) = number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0) {
                *schema = (whole as i64).into();
            }
        }
        Value::Object(fields) => {
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
            }
            if fields.get("title").is_some_and(Value::is_string) {
                fields.remove("title");
            }
            bound(fields);
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Sets the maximum of an integer to what its Rust type holds, unless its schema has a maximum.
fn bound(fields: &mut Map<String, Value>) {
    let Some(format) = fields.get("format").and_then(Value::as_str) else { return };
    let (most, is_unsigned) = match format {
        "uint8" => (u8::MAX.into(), true),
        "uint16" => (u16::MAX.into(), true),
        "uint32" => (u32::MAX.into(), true),
        "int32" => (i32::MAX.into(), false),
        "uint" | "uint64" => (WHOLE_MAX, true),
        "int64" => (WHOLE_MAX, false),
        _ => return,
    };
    fields.entry("maximum").or_insert_with(|| most.into());
    if is_unsigned {
        fields.insert("format".to_owned(), "int64".into());
    }
}

/// Removes the defaults of list items: tools such as Argo CD compare items as a whole, so an object whose items the API server
/// completed would count as changed for ever.
pub(crate) fn without_item_defaults(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                if key == "items" { without_defaults(value) } else { without_item_defaults(value) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(without_item_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Removes defaults: what nobody reported must not look as if somebody had.
pub(crate) fn without_defaults(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("default");
            fields.values_mut().for_each(without_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(without_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

//! The profile language as a JSON Schema (draft 2020-12), for editors that complete and check TOML by one.

use serde_json::{Map, Value, json};

use super::language::{Key, Kind, Need};
use super::raw;

/// Returns the schema of a profile.
///
/// It knows each key by itself; the rules between keys are `gpuvm check`'s.
pub fn schema() -> Value {
    let mut schema = table(raw::KEYS);
    if let Value::Object(schema) = &mut schema {
        schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        schema.insert("title".to_owned(), json!("gpuvm profile, version 1"));
    }
    schema
}

fn table(keys: &[Key]) -> Value {
    let properties: Map<String, Value> =
        keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let required: Vec<&str> =
        keys.iter().filter(|key| key.presence == Need::Required).map(|key| key.name).collect();
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}

fn property(key: &Key) -> Value {
    let mut property = kind(&key.kind);
    if let Value::Object(property) = &mut property {
        property.insert("description".to_owned(), json!(key.doc));
        // Defaults are spelt as in TOML, which for words, numbers, flags and empty arrays is JSON's spelling too.
        if let Need::Default(text) = key.presence
            && let Ok(default) = serde_json::from_str::<Value>(text)
        {
            property.insert("default".to_owned(), default);
        }
    }
    property
}

fn kind(kind_: &Kind) -> Value {
    match kind_ {
        Kind::Text => json!({ "type": "string" }),
        Kind::Pattern(pattern) => json!({ "type": "string", "pattern": pattern }),
        Kind::Words(words) => json!({ "type": "string", "enum": words() }),
        Kind::Integer { low, high } => json!({ "type": "integer", "minimum": low, "maximum": high }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::List(item) => json!({ "type": "array", "items": kind(item) }),
        Kind::Either(kinds) => json!({ "anyOf": kinds.iter().map(kind).collect::<Vec<_>>() }),
        Kind::Table(keys) => table(keys),
        Kind::Tables(keys) => json!({ "type": "array", "items": table(keys) }),
    }
}

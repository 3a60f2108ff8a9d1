//! Keys and values as people and JSON get them: any bytes, without steering a terminal and without loss.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::space::Space;

/// Bytes of a client.
///
/// In JSON they are a string where they are UTF-8, and `{"base64": "…"}` where they are not. For people they
/// are the text, with what is not printable escaped as `\xNN` and a backslash doubled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Shown(pub Vec<u8>);

/// Bytes that are no text, in JSON.
#[derive(Serialize, Deserialize)]
struct Encoded {
    base64: String,
}

impl From<&[u8]> for Shown {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    control if control.is_control() => {
                        let mut bytes = [0; 4];
                        for byte in control.encode_utf8(&mut bytes).bytes() {
                            write!(f, "\\x{byte:02x}")?;
                        }
                    }
                    printable => f.write_char(printable)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Encoded {
                base64: STANDARD.encode(&self.0),
            }
            .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let value = serde_json::Value::deserialize(deserializer)?;
        if let Some(text) = value.as_str() {
            return Ok(Self(text.as_bytes().to_vec()));
        }
        let encoded: Encoded = serde_json::from_value(value).map_err(D::Error::custom)?;
        let bytes = STANDARD.decode(encoded.base64).map_err(D::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// What is at a key, as much of it as fits within a bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    /// Nothing.
    None,
    /// A string.
    String {
        /// Its value, or the beginning of it.
        value: Shown,
        /// How long it is, in bytes.
        length: u64,
        /// Not all of it is here.
        truncated: bool,
        /// In how many milliseconds it expires; absent for never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_ms: Option<u64>,
    },
    /// A hash.
    Hash {
        /// Its fields, or some of them.
        fields: Vec<Field>,
        /// How many it has.
        length: u64,
        /// Not all of it is here.
        truncated: bool,
        /// In how many milliseconds it expires; absent for never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_ms: Option<u64>,
    },
}

/// A field of a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name.
    pub field: Shown,
    /// Its value.
    pub value: Shown,
}

impl Content {
    /// Looks at `key`, and takes about `bytes_max` bytes of what is there.
    pub fn of(space: &Space<'_>, key: &[u8], bytes_max: usize) -> Self {
        let expires = space.expires(key).flatten();
        let ttl_ms = expires.map(|at| at.0.saturating_sub(space.now().0));
        if let Ok(Some(value)) = space.string(key) {
            let start = beginning(value, bytes_max);
            return Self::String {
                value: Shown::from(start),
                length: length(value.len()),
                truncated: start.len() < value.len(),
                ttl_ms,
            };
        }
        let Ok(Some(hash)) = space.hash(key) else {
            return Self::None;
        };
        let (mut fields, mut bytes, mut cursor) = (Vec::new(), 0_usize, 0);
        loop {
            cursor = hash.scan(cursor, FIELDS_AT_ONCE, &mut |field, value| {
                if bytes < bytes_max {
                    bytes = bytes
                        .saturating_add(field.len())
                        .saturating_add(value.len());
                    fields.push(Field {
                        field: field.into(),
                        value: value.into(),
                    });
                }
            });
            if cursor == 0 || bytes >= bytes_max {
                break;
            }
        }
        fields.sort_by(|left, right| left.field.cmp(&right.field));
        Self::Hash {
            length: length(hash.field_count()),
            truncated: fields.len() < hash.field_count(),
            fields,
            ttl_ms,
        }
    }
}

/// Returns at most `bytes_max` bytes of a value; text is not cut within a character.
fn beginning(value: &[u8], bytes_max: usize) -> &[u8] {
    let start = value.get(..bytes_max).unwrap_or(value);
    match std::str::from_utf8(start) {
        Err(error) if error.error_len().is_none() => {
            start.get(..error.valid_up_to()).unwrap_or(start)
        }
        Ok(_) | Err(_) => start,
    }
}

/// How many fields are looked at before the bound is looked at again.
const FIELDS_AT_ONCE: usize = 64;

fn length(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv::draft::Draft;
    use crate::kv::table::Table;
    use crate::position::Position;
    use crate::wall_time::WallTime;

    #[test]
    fn text_is_text_and_the_rest_is_escaped_or_base64() {
        let shown = |bytes: &[u8]| {
            let shown = Shown::from(bytes);
            (shown.to_string(), serde_json::to_string(&shown).unwrap())
        };
        let pair = |text: &str, json: &str| (text.to_owned(), json.to_owned());
        assert_eq!(shown("grün".as_bytes()), pair("grün", r#""grün""#));
        assert_eq!(shown(b""), pair("", r#""""#));
        assert_eq!(shown(b"a\xff\\"), pair(r"a\xff\\", r#"{"base64":"Yf9c"}"#));
        assert_eq!(shown(b"\x1b[2J\n"), pair(r"\x1b[2J\n", "\"\\u001b[2J\\n\""));
    }

    fn content(bytes_max: usize, key: &[u8]) -> String {
        let (table, mut draft) = (Table::new(), Draft::new(Position(0)));
        let mut space = Space::newest(&table, &mut draft, WallTime(100));
        space.set(b"s", b"hello", Some(WallTime(350))).unwrap();
        space.set(b"gone", b"hello", Some(WallTime(100))).unwrap();
        space
            .hash_set(b"h", &[(b"g", b"\xff"), (b"f", b"1")])
            .unwrap();
        let content = Content::of(&space, key, bytes_max);
        let json = serde_json::to_string(&content).unwrap();
        assert_eq!(serde_json::from_str::<Content>(&json).unwrap(), content);
        json
    }

    #[test]
    fn content_is_told_whole_or_says_that_it_is_not() {
        let told = [(9, "s"), (2, "s"), (9, "h"), (9, "none"), (9, "gone")]
            .map(|(bytes_max, key)| content(bytes_max, key.as_bytes()));
        assert_eq!(
            told,
            [
                r#"{"type":"string","value":"hello","length":5,"truncated":false,"ttl_ms":250}"#,
                r#"{"type":"string","value":"he","length":5,"truncated":true,"ttl_ms":250}"#,
                r#"{"type":"hash","fields":[{"field":"f","value":"1"},{"field":"g","value":{"base64":"/w=="}}],"length":2,"truncated":false}"#,
                r#"{"type":"none"}"#,
                r#"{"type":"none"}"#,
            ]
        );
        assert!(content(1, b"h").contains(r#""length":2,"truncated":true"#));
    }

    #[test]
    fn text_is_not_cut_within_a_character() {
        assert_eq!(beginning("grün".as_bytes(), 3), b"gr");
        assert_eq!(beginning("grün".as_bytes(), 4), "grü".as_bytes());
        assert_eq!(beginning(b"\xff\xff\xff", 2), b"\xff\xff");
    }

    proptest! {
        #[test]
        fn json_gives_back_what_was_shown_and_a_terminal_is_never_steered(bytes: Vec<u8>) {
            let shown = Shown(bytes);
            let json = serde_json::to_string(&shown).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Shown>(&json).unwrap(), &shown);
            prop_assert!(!shown.to_string().chars().any(char::is_control));
        }
    }
}

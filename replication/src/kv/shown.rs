//! Keys and values as people and JSON get them: any bytes, without steering a terminal and without loss.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

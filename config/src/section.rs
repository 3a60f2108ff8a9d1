//! How a section of a file is declared and read.
//!
//! A [`section!`] says once what each key is called, what it holds, what it is when absent, and what
//! it means. The struct, the reader and the operator's reference all come of that.
//!
//! Serde would stop at the first key that it does not know or cannot read. These readers report it
//! and go on, so that one look at the file finds everything; what could not be read is `None`, and
//! what depends on it is not checked.

use toml::de::{DeTable, DeValue};

use crate::problem::{Findings, Place, Placed};
use crate::value::{Input, Value};

/// A section as the reference tells it.
#[derive(Debug)]
pub(crate) struct Section {
    /// As it stands in the file: `[[node]]`.
    pub(crate) heading: &'static str,
    pub(crate) about: &'static str,
    pub(crate) keys: &'static [Key],
}

/// A key of a section.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What its value is: "duration".
    pub(crate) kind: &'static str,
    pub(crate) presence: Presence,
    pub(crate) about: &'static str,
    /// A value, as TOML.
    pub(crate) example: &'static str,
}

/// What an absent key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Required,
    Optional,
    /// The key is absent: a word of the design that this version does not have.
    Unavailable,
    /// The same as this value, as TOML.
    Default(&'static str),
}

impl Section {
    /// Returns the table that `input` must be, and reports the keys that the section does not have.
    pub(crate) fn open<'a, T: Value>(
        &self,
        input: &Input<'a>,
        findings: &mut Findings,
    ) -> Option<&'a DeTable<'a>> {
        let DeValue::Table(table) = input.value else {
            input.report_type::<T>(findings);
            return None;
        };
        let known = || {
            self.keys
                .iter()
                .filter(|key| key.presence != Presence::Unavailable)
        };
        for (key, _) in table {
            let name: &str = key.get_ref();
            if self.keys.iter().any(|known| known.name == name) {
                continue;
            }
            let what = match self.heading {
                "" => format!("unknown key `{name}`"),
                heading => format!("unknown key `{name}` in `{heading}`"),
            };
            let names: Vec<String> = known().map(|key| format!("`{}`", key.name)).collect();
            let expected = format!("one of {}", names.join(", "));
            let place = Place::new(input.source, key.span());
            let problem = findings.report(&place, what, expected);
            problem.suggesting(name, known().map(|key| key.name));
        }
        Some(table)
    }

    /// Reads one key of the section, or its default.
    pub(crate) fn read<T: Value>(
        &self,
        section: &Input<'_>,
        table: &DeTable<'_>,
        key: &Key,
        findings: &mut Findings,
    ) -> Option<Placed<T>> {
        if let Some(value) = table.get(key.name) {
            let span = value.span();
            let input = Input {
                source: section.source,
                key: key.name,
                is_element: false,
                value: value.get_ref(),
                span,
            };
            return Some(Placed {
                value: T::read(&input, findings)?,
                place: input.place(),
            });
        }
        match key.presence {
            Presence::Optional | Presence::Unavailable => None,
            Presence::Required => {
                let (missing, expected) = match key.kind {
                    "table" => (format!("section `[{}]`", key.name), T::expected(key.name)),
                    _ => {
                        let example = format!("`{} = {}`, for example", key.name, key.example);
                        (format!("key `{}`", key.name), example)
                    }
                };
                let what = format!("{} lacks the {missing}", self.subject());
                findings.report(&section.place(), what, expected);
                None
            }
            Presence::Default(text) => {
                let value = DeValue::parse(text).expect("defaults are TOML, as a test makes sure");
                let input = Input {
                    key: key.name,
                    is_element: false,
                    value: value.get_ref(),
                    span: section.span.clone(),
                    ..*section
                };
                Some(Placed {
                    value: T::read(&input, findings)?,
                    place: section.place(),
                })
            }
        }
    }

    fn subject(&self) -> String {
        match self.heading {
            "" => "the file".to_owned(),
            heading => format!("`{heading}`"),
        }
    }
}

/// Declares a section: its heading, and each key as `name: Type as "kind" = presence, "example"`.
///
/// The doc comments are what the operator reads in the reference.
macro_rules! section {
    (@presence required) => { $crate::section::Presence::Required };
    (@presence unavailable) => { $crate::section::Presence::Unavailable };
    (@presence optional) => { $crate::section::Presence::Optional };
    (@presence $default:literal) => { $crate::section::Presence::Default($default) };
    (
        $(#[doc = $about:literal])*
        $section:ident $heading:literal {
            $(
                $(#[doc = $key_about:literal])*
                $key:ident: $kind:ty as $kind_name:literal = $presence:tt, $example:literal;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug)]
        pub(crate) struct $section {
            $(
                $(#[doc = $key_about])*
                pub(crate) $key: Option<$crate::problem::Placed<$kind>>,
            )*
        }

        impl $section {
            pub(crate) const SECTION: $crate::section::Section = $crate::section::Section {
                heading: $heading,
                about: concat!($($about, "\n"),*),
                keys: &[$(
                    $crate::section::Key {
                        name: stringify!($key),
                        kind: $kind_name,
                        presence: section!(@presence $presence),
                        about: concat!($($key_about, "\n"),*),
                        example: $example,
                    }
                ),*],
            };
        }

        impl $crate::value::Value for $section {
            fn expected(key: &str) -> String {
                format!("a table: `[{key}]`")
            }

            fn expected_list(key: &str) -> String {
                format!("tables: `[[{key}]]`, with two brackets")
            }

            fn read(
                input: &$crate::value::Input<'_>,
                findings: &mut $crate::problem::Findings,
            ) -> Option<Self> {
                let section = Self::SECTION;
                let table = section.open::<Self>(input, findings)?;
                let mut keys = section.keys.iter();
                // The keys come in the order of the fields, since one list made both.
                $(
                    let $key = section.read(input, table, keys.next()?, findings);
                )*
                Some(Self { $($key),* })
            }
        }
    };
}

pub(crate) use section;

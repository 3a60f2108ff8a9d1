//! How a section of a file is declared and read.
//!
//! A [`section!`] says once what each key is called, what it holds, what it is when absent, and what
//! it means. The struct, the reader and the operator's reference all come of that.
//!
//! Serde would stop at the first key that it does not know or cannot read. These readers report it
//! and go on, so that one look at the file finds everything; what could not be read is `None`, and
//! what depends on it is not checked.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::problem::{Findings, Place, Placed};

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
    /// The same as this value, as TOML.
    Default(&'static str),
}

/// What is read, and where it is.
pub(crate) struct Input<'a> {
    pub(crate) source: usize,
    /// The key that holds the value.
    pub(crate) key: &'a str,
    pub(crate) value: &'a DeValue<'a>,
    pub(crate) span: Range<usize>,
}

impl Input<'_> {
    pub(crate) fn place(&self) -> Place {
        Place::new(self.source, self.span.clone())
    }

    fn report_type<T: Value>(&self, findings: &mut Findings) {
        let article = match self.value {
            DeValue::Integer(_) | DeValue::Array(_) => "an",
            DeValue::String(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Table(_) => "a",
        };
        let what = format!("`{}` is {article} {}", self.key, self.value.type_str());
        findings.report(&self.place(), what, T::expected(self.key));
    }
}

/// What a key can hold.
pub(crate) trait Value: Sized {
    /// Says what is expected of the value of `key`: "a string".
    fn expected(key: &str) -> String;

    /// Says the same of a list of such values.
    fn expected_list(key: &str) -> String;

    /// Reads the value, or reports why it cannot.
    fn read(input: &Input<'_>, findings: &mut Findings) -> Option<Self>;
}

impl Value for String {
    fn expected(_: &str) -> String {
        "a string in quotes".to_owned()
    }

    fn expected_list(_: &str) -> String {
        "a list of strings, such as [\"a\", \"b\"]".to_owned()
    }

    fn read(input: &Input<'_>, findings: &mut Findings) -> Option<Self> {
        let text = input.value.as_str().map(str::to_owned);
        if text.is_none() {
            input.report_type::<Self>(findings);
        }
        text
    }
}

impl Value for u16 {
    fn expected(_: &str) -> String {
        format!("a whole number from 0 to {}", Self::MAX)
    }

    fn expected_list(_: &str) -> String {
        "a list of whole numbers".to_owned()
    }

    fn read(input: &Input<'_>, findings: &mut Findings) -> Option<Self> {
        let Some(integer) = input.value.as_integer() else {
            input.report_type::<Self>(findings);
            return None;
        };
        let number = Self::from_str_radix(integer.as_str(), integer.radix()).ok();
        if number.is_none() {
            let what = format!("`{integer}` is out of range");
            findings.report(&input.place(), what, Self::expected(input.key));
        }
        number
    }
}

impl<T: Value> Value for Vec<Placed<T>> {
    fn expected(key: &str) -> String {
        T::expected_list(key)
    }

    fn expected_list(key: &str) -> String {
        format!("a list of lists: {}", T::expected_list(key))
    }

    fn read(input: &Input<'_>, findings: &mut Findings) -> Option<Self> {
        let Some(array) = input.value.as_array() else {
            input.report_type::<Self>(findings);
            return None;
        };
        let elements = array.iter().filter_map(|element| {
            let span = element.span();
            let input = Input { value: element.get_ref(), span, ..*input };
            Some(Placed { value: T::read(&input, findings)?, place: input.place() })
        });
        Some(elements.collect())
    }
}

/// A section that the design knows and this version does not have.
#[derive(Clone, Debug)]
pub(crate) struct Unavailable;

impl Value for Unavailable {
    fn expected(_: &str) -> String {
        "nothing".to_owned()
    }

    fn expected_list(key: &str) -> String {
        Self::expected(key)
    }

    fn read(input: &Input<'_>, findings: &mut Findings) -> Option<Self> {
        let what = format!("section `[{}]` is not available in this version", input.key);
        findings.report(&input.place(), what, "the section to be removed");
        None
    }
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
        let names = || self.keys.iter().map(|key| key.name);
        for (key, _) in table {
            let name: &str = key.get_ref();
            if names().any(|known| known == name) {
                continue;
            }
            let known: Vec<String> = names().map(|name| format!("`{name}`")).collect();
            let what = format!("{} has no key `{name}`", self.subject());
            let expected = format!("one of {}", known.join(", "));
            let place = Place::new(input.source, key.span());
            findings.report(&place, what, expected).suggesting(name, names());
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
            let input =
                Input { source: section.source, key: key.name, value: value.get_ref(), span };
            return Some(Placed { value: T::read(&input, findings)?, place: input.place() });
        }
        match key.presence {
            Presence::Optional => None,
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
                let input =
                    Input { key: key.name, value: value.get_ref(), span: section.span.clone(), ..*section };
                Some(Placed { value: T::read(&input, findings)?, place: section.place() })
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

        impl $crate::section::Value for $section {
            fn expected(key: &str) -> String {
                format!("a table: `[{key}]`")
            }

            fn expected_list(key: &str) -> String {
                format!("tables: `[[{key}]]`, with two brackets")
            }

            fn read(
                input: &$crate::section::Input<'_>,
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

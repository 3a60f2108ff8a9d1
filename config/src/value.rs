//! What a key can hold, and how it is read.

use std::ops::Range;

use toml::de::DeValue;

use crate::problem::{Findings, Place, Placed};

/// What is read, and where it is.
pub(crate) struct Input<'a> {
    pub(crate) source: usize,
    /// The key that holds the value.
    pub(crate) key: &'a str,
    /// Whether this is not the value itself but an element of it.
    pub(crate) is_element: bool,
    pub(crate) value: &'a DeValue<'a>,
    pub(crate) span: Range<usize>,
}

impl Input<'_> {
    /// Returns where the value is.
    pub(crate) fn place(&self) -> Place {
        Place::new(self.source, self.span.clone())
    }

    /// Reports that this is not what a `T` is read from.
    pub(crate) fn report_type<T: Value>(&self, findings: &mut Findings) {
        let article = match self.value {
            DeValue::Integer(_) | DeValue::Array(_) => "an",
            DeValue::String(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Table(_) => "a",
        };
        let verb = if self.is_element { "holds" } else { "is" };
        let what = format!("`{}` {verb} {article} {}", self.key, self.value.type_str());
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

impl Value for bool {
    fn expected(_: &str) -> String {
        "`true` or `false`, without quotes".to_owned()
    }

    fn expected_list(_: &str) -> String {
        "a list of `true` and `false`".to_owned()
    }

    fn read(input: &Input<'_>, findings: &mut Findings) -> Option<Self> {
        let truth = input.value.as_bool();
        if truth.is_none() {
            input.report_type::<Self>(findings);
        }
        truth
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
            let input = Input {
                is_element: true,
                value: element.get_ref(),
                span,
                ..*input
            };
            Some(Placed {
                value: T::read(&input, findings)?,
                place: input.place(),
            })
        });
        Some(elements.collect())
    }
}

/// A section that the design knows and this version does not have; whatever is in it.
#[derive(Clone, Debug)]
pub(crate) struct Unavailable;

impl Value for Unavailable {
    fn expected(_: &str) -> String {
        "nothing".to_owned()
    }

    fn expected_list(key: &str) -> String {
        Self::expected(key)
    }

    fn read(_: &Input<'_>, _: &mut Findings) -> Option<Self> {
        Some(Self)
    }
}

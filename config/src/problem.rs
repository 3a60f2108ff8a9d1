//! What is wrong with the files, and where.

use std::fmt;
use std::ops::Range;

/// A place in one of the files that were read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of [`Problems::sources`].
    pub source: usize,
    /// Where the place starts, in bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

impl Place {
    pub(crate) fn new(source: usize, span: Range<usize>) -> Self {
        Self {
            source,
            start: span.start,
            end: span.end,
        }
    }

    /// Returns the part of this place that lies at `within`, counted from its start.
    pub(crate) fn part(&self, within: &Range<usize>) -> Self {
        Self::new(
            self.source,
            self.start + within.start..self.start + within.end,
        )
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// What is wrong: "store `uploads` is named twice".
    pub what: String,
    /// What would be right: "a name that no other store has".
    pub expected: String,
    /// The valid word that was perhaps meant.
    pub suggestion: Option<String>,
    /// Another place that has to do with it, and what it is: "named here first".
    pub related: Option<(Place, String)>,
}

impl Problem {
    /// Adds the candidate that is nearest to what was written, if one is near.
    pub(crate) fn suggesting<'a>(
        &mut self,
        written: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> &mut Self {
        /// Below this two words are not alike: `path` and `paths` are, `name` and `data_dir` are not.
        const SIMILARITY_MIN: f64 = 0.75;
        self.suggestion = candidates
            .into_iter()
            .map(|candidate| (strsim::jaro_winkler(written, candidate), candidate))
            .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
            .max_by(|(left, _), (right, _)| left.total_cmp(right))
            .map(|(_, candidate)| candidate.to_owned());
        self
    }

    /// Adds another place that has to do with the problem.
    pub(crate) fn related(&mut self, place: &Place, what: impl Into<String>) -> &mut Self {
        self.related = Some((place.clone(), what.into()));
        self
    }
}

/// A file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What the file is called in messages.
    pub file: String,
    /// Its content.
    pub text: String,
}

/// The most problems that are told: whoever has more of them did not write a configuration.
const PROBLEMS_MAX: usize = 1000;

/// Everything that is wrong with the files. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    pub(crate) sources: Vec<Source>,
    pub(crate) problems: Vec<Problem>,
}

impl Problems {
    /// Returns the files that the places are in.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Returns the problems in the order of their places.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(crate) fn source(&self, place: &Place) -> &Source {
        &self.sources[place.source]
    }

    /// Returns the line and the column of a place's start, both counted from 1, the column in
    /// characters.
    pub(crate) fn line_and_column(&self, place: &Place) -> (usize, usize) {
        let before = self
            .source(place)
            .text
            .get(..place.start)
            .unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }
}

impl fmt::Display for Problems {
    /// Writes the first problem on one line, and how many more there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.problems.first() else {
            return f.write_str("no problems");
        };
        let (line, column) = self.line_and_column(&first.place);
        let file = &self.source(&first.place).file;
        write!(
            f,
            "{file}:{line}:{column}: {}, expected {}",
            first.what, first.expected
        )?;
        match self.problems.len() {
            1 => Ok(()),
            count => write!(f, " (and {} more)", count - 1),
        }
    }
}

impl std::error::Error for Problems {}

/// What is wrong with one value, before its place is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}, expected {expected}")]
pub struct Mistake {
    /// What is wrong: "`5x` is not a duration".
    pub what: String,
    /// What would be right.
    pub expected: String,
    /// Which bytes of the value are wrong, where that is known.
    pub within: Option<Range<usize>>,
}

impl Mistake {
    pub(crate) fn new(what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            expected: expected.into(),
            within: None,
        }
    }
}

/// A value and the place where it was written; or, for a default, the section that lacks it.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// The problems that were found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Problem>);

impl Findings {
    /// Adds a problem, and returns it for what else there is to say.
    pub(crate) fn report(
        &mut self,
        place: &Place,
        what: impl Into<String>,
        expected: impl Into<String>,
    ) -> &mut Problem {
        let (what, expected) = (printable(&what.into()), printable(&expected.into()));
        let place = place.clone();
        self.0.push_mut(Problem {
            place,
            what,
            expected,
            suggestion: None,
            related: None,
        })
    }

    /// Parses a value; its mistake becomes a problem.
    pub(crate) fn check<T, V: AsRef<str>>(
        &mut self,
        written: &Placed<V>,
        parse: impl FnOnce(&str) -> Result<T, Mistake>,
    ) -> Option<T> {
        let text = written.value.as_ref();
        let mistake = match parse(text) {
            Ok(value) => return Some(value),
            Err(mistake) => mistake,
        };
        // Only a string with one quote on either side, and no escapes, has its bytes where they
        // are in the value.
        let is_verbatim = written.place.end - written.place.start == text.len() + 2;
        let place = match mistake.within {
            Some(within) if is_verbatim => written.place.part(&(within.start + 1..within.end + 1)),
            Some(_) | None => written.place.clone(),
        };
        self.report(&place, mistake.what, mistake.expected);
        None
    }

    /// Returns everything that was found in the order of the files, or `None` if that is nothing.
    pub(crate) fn into_problems(self, sources: Vec<Source>) -> Option<Problems> {
        let mut problems = self.0;
        problems.sort_by(|left, right| left.place.cmp(&right.place));
        problems.truncate(PROBLEMS_MAX);
        (!problems.is_empty()).then_some(Problems { sources, problems })
    }
}

/// Escapes what would break a line or a terminal: texts quote what was written.
fn printable(text: &str) -> String {
    let escape = |c: char| {
        let escaped = c.is_control().then(|| c.escape_default().to_string());
        escaped.unwrap_or_else(|| c.to_string())
    };
    text.chars().map(escape).collect()
}

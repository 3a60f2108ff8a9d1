//! Patterns of what is left out of a store.

use std::fmt;
use std::path::Path;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

/// A set of patterns, compiled.
///
/// A pattern without `/` is matched against the name of an entry, at any depth; one with a `/` against
/// the path relative to the store. `*` and `?` do not match a `/`, `**` does.
#[derive(Clone)]
pub struct Globs {
    patterns: Vec<String>,
    names: GlobSet,
    paths: GlobSet,
}

/// A pattern that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// The pattern cannot be compiled.
    #[error("`{pattern}` is not a pattern: {reason}")]
    Syntax {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: globset::ErrorKind,
    },
    /// The pattern ends in `/`, as no path in a store does, or has nothing else in it.
    #[error("`{0}` can match nothing")]
    Unmatchable(String),
    /// The patterns are too many, or too large together.
    #[error("the patterns are too large together: {0}")]
    TooLarge(globset::ErrorKind),
}

impl Globs {
    /// Compiles `patterns`; the first that is wrong is the error.
    pub fn new(patterns: impl IntoIterator<Item = String>) -> Result<Self, GlobError> {
        let patterns: Vec<String> = patterns.into_iter().collect();
        let mut names = GlobSetBuilder::new();
        let mut paths = GlobSetBuilder::new();
        for pattern in &patterns {
            let glob = compile(pattern)?;
            if pattern.contains('/') {
                paths.add(glob)
            } else {
                names.add(glob)
            };
        }
        let build = |set: GlobSetBuilder| {
            set.build()
                .map_err(|error| GlobError::TooLarge(error.kind().clone()))
        };
        Ok(Self {
            names: build(names)?,
            paths: build(paths)?,
            patterns,
        })
    }

    /// Returns whether a pattern matches this path, which is relative to the store.
    ///
    /// What lies within a matched directory is not matched by that: a caller that did not come to
    /// `relative_path` by walking down asks for its ancestors, too.
    pub fn is_match(&self, relative_path: &Path) -> bool {
        self.paths.is_match(relative_path)
            || relative_path
                .file_name()
                .is_some_and(|name| self.names.is_match(name))
    }

    /// Returns the patterns as they were written.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}

impl Default for Globs {
    fn default() -> Self {
        Self {
            patterns: Vec::new(),
            names: GlobSet::empty(),
            paths: GlobSet::empty(),
        }
    }
}

impl fmt::Debug for Globs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Globs").field(&self.patterns).finish()
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

impl Eq for Globs {}

/// Compiles one pattern; a leading `/` only says that it is not about a name.
fn compile(pattern: &str) -> Result<Glob, GlobError> {
    let relative = pattern.strip_prefix('/').unwrap_or(pattern);
    if relative.is_empty() || relative.ends_with('/') {
        return Err(GlobError::Unmatchable(pattern.to_owned()));
    }
    GlobBuilder::new(relative)
        .literal_separator(true)
        .build()
        .map_err(|error| GlobError::Syntax {
            pattern: pattern.to_owned(),
            reason: error.kind().clone(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(patterns: &[&str]) -> Globs {
        Globs::new(patterns.iter().map(|pattern| (*pattern).to_owned())).unwrap()
    }

    #[test]
    fn a_pattern_without_slash_is_about_names_and_one_with_a_slash_about_paths() {
        let table = [
            ("*.tmp", "a.tmp", true),
            ("*.tmp", "deep/down/a.tmp", true),
            ("*.tmp", "a.tmp/b", false),
            ("cache/*", "cache/a", true),
            ("cache/*", "cache/a/b", false),
            ("cache/**", "cache/a/b", true),
            ("cache/*", "other/cache/a", false),
            ("**/cache/*", "other/cache/a", true),
            ("/top", "top", true),
            ("/top", "below/top", false),
            ("{a,b}[0-9]", "b7", true),
        ];
        let matched = table
            .map(|(pattern, path, _)| (pattern, path, globs(&[pattern]).is_match(Path::new(path))));
        assert_eq!(matched, table);
    }

    #[test]
    fn nothing_matches_no_pattern() {
        assert!(!Globs::default().is_match(Path::new("a")));
    }

    #[test]
    fn a_pattern_that_cannot_match_is_refused() {
        let errors = ["cache/", "/", "", "[a"]
            .map(|pattern| Globs::new([pattern.to_owned()]).unwrap_err().to_string());
        insta::assert_debug_snapshot!(errors, @r#"
        [
            "`cache/` can match nothing",
            "`/` can match nothing",
            "`` can match nothing",
            "`[a` is not a pattern: unclosed character class; missing ']'",
        ]
        "#);
    }
}

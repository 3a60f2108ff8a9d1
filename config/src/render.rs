//! Problems for people, in the look of rustc, and for machines.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::{Value, json};

use crate::problem::{Place, Problem, Problems};

impl Problems {
    /// Renders every problem as rustc would: what, where, the line itself, and what was expected.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let reports: Vec<String> = self
            .problems
            .iter()
            .map(|problem| renderer.render(&self.report(problem)))
            .collect();
        reports.join("\n\n")
    }

    fn report<'a>(&'a self, problem: &'a Problem) -> Vec<Group<'a>> {
        let primary = AnnotationKind::Primary
            .span(self.span(&problem.place))
            .label(format!("expected {}", problem.expected));
        let mut snippet = self.snippet(&problem.place).annotation(primary);
        let mut elsewhere = None;
        if let Some((place, label)) = &problem.related {
            let context = AnnotationKind::Context
                .span(self.span(place))
                .label(label.as_str());
            if place.source == problem.place.source {
                snippet = snippet.annotation(context);
            } else {
                elsewhere = Some(self.snippet(place).annotation(context));
            }
        }
        let mut main = Level::ERROR
            .primary_title(problem.what.as_str())
            .element(snippet);
        if let Some(snippet) = elsewhere {
            main = main.element(snippet);
        }
        if let Some(suggestion) = &problem.suggestion {
            main = main.element(Level::HELP.message(format!("did you mean `{suggestion}`?")));
        }
        vec![main]
    }

    fn snippet<'a, T: Clone>(&'a self, place: &Place) -> Snippet<'a, T> {
        let source = self.source(place);
        Snippet::source(source.text.as_str()).path(source.file.as_str())
    }

    /// Returns the place's bytes, cut down to whole characters of the text: a parser that points
    /// into the middle of one must not stop the message.
    fn span(&self, place: &Place) -> Range<usize> {
        let text = &self.source(place).text;
        let start = text.floor_char_boundary(place.start);
        start..text.ceil_char_boundary(place.end.max(start))
    }

    /// Returns the problems as an array of `{file, line, column, text, what, expected, suggestion,
    /// related}`, where `related` is `null` or `{file, line, column, text, what}`.
    pub fn to_json(&self) -> Value {
        let related = |(place, what): &(Place, String)| {
            let (line, column) = self.line_and_column(place);
            json!({
                "file": self.source(place).file,
                "line": line,
                "column": column,
                "text": self.text(place),
                "what": what,
            })
        };
        let problem = |problem: &Problem| {
            let (line, column) = self.line_and_column(&problem.place);
            json!({
                "file": self.source(&problem.place).file,
                "line": line,
                "column": column,
                "text": self.text(&problem.place),
                "what": problem.what,
                "expected": problem.expected,
                "suggestion": problem.suggestion,
                "related": problem.related.as_ref().map(related),
            })
        };
        Value::Array(self.problems.iter().map(problem).collect())
    }

    fn text(&self, place: &Place) -> &str {
        &self.source(place).text[self.span(place)]
    }
}

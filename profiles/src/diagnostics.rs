// SPDX-License-Identifier: MIT OR Apache-2.0
//! Problems of a cluster file, and how they are shown: all at once, each with its place in the file, as text for people
//! or JSON for programs. Knows nothing of clusters.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, in bytes of the file.
    pub span: Range<usize>,
    /// Which key, `network.gateway` or `node[2].address`; empty for problems of syntax.
    pub key: String,
    /// What is wrong, with the values concerned.
    pub what: String,
    /// Why it would not work; may be empty.
    pub why: String,
    /// What to do; may be empty.
    pub fix: String,
}

/// Everything that is wrong with a file. Displays as text; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    file: String,
    source: String,
    problems: Vec<Problem>,
}

/// Line and column, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Report {
    /// Sorts problems by place and drops repetitions.
    pub(crate) fn new(file: &str, source: &str, mut problems: Vec<Problem>) -> Self {
        for problem in &mut problems {
            problem.span = within(source, problem.span.clone());
        }
        problems.sort_by(|a, b| (a.span.start, a.span.end, &a.what).cmp(&(b.span.start, b.span.end, &b.what)));
        problems.dedup();
        Self { file: file.to_owned(), source: source.to_owned(), problems }
    }

    /// The problems, by their place in the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Line and column where `problem` begins.
    pub fn position(&self, problem: &Problem) -> Position {
        position(&self.source, problem.span.start)
    }

    /// The report for programs: an object with `file` and `problems`.
    pub fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> = self
            .problems
            .iter()
            .map(|problem| {
                serde_json::json!({
                    "start": position(&self.source, problem.span.start),
                    "end": position(&self.source, problem.span.end),
                    "key": problem.key,
                    "what": problem.what,
                    "why": problem.why,
                    "fix": problem.fix,
                })
            })
            .collect();
        serde_json::json!({ "file": self.file, "problems": problems })
    }
}

impl std::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            let Position { line, column } = self.position(problem);
            let start = problem.span.start;
            let line_start = self.source[..start].rfind('\n').map_or(0, |at| at + 1);
            let line_end = self.source[start..].find('\n').map_or(self.source.len(), |at| start + at);
            let end = problem.span.end.clamp(start, line_end);
            let carets = self.source[start..end].chars().count().max(1);
            let shown: String = printable(self.source[line_start..line_end].trim_end_matches('\r'));
            let gutter = " ".repeat(line.to_string().len());

            writeln!(f, "{}:{line}:{column}: {}", self.file, printable(&problem.what))?;
            writeln!(f, "{gutter} |")?;
            writeln!(f, "{line} | {shown}")?;
            writeln!(f, "{gutter} | {}{}", " ".repeat(column - 1), "^".repeat(carets))?;
            for (label, text) in [("why", &problem.why), ("fix", &problem.fix)] {
                if !text.is_empty() {
                    writeln!(f, "{gutter} = {label}: {}", printable(text))?;
                }
            }
            writeln!(f)?;
        }
        let count = self.problems.len();
        write!(f, "{count} problem{} in {}", if count == 1 { "" } else { "s" }, self.file)
    }
}

/// Keeps control characters of a hostile file out of the terminal, one character for one.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '\t' {
                ' '
            } else if c.is_control() {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Moves a span to character boundaries inside the text.
fn within(source: &str, span: Range<usize>) -> Range<usize> {
    let boundary = |at: usize| (0..=at.min(source.len())).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0);
    let start = boundary(span.start);
    start..boundary(span.end).max(start)
}

fn position(source: &str, at: usize) -> Position {
    let before = &source[..at];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Position {
        line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(span: Range<usize>) -> Problem {
        Problem { span, key: "k".into(), what: "wrong".into(), why: "because".into(), fix: String::new() }
    }

    #[test]
    fn points_at_the_place() {
        let report = Report::new("c.toml", "a = 1\nü = \"x\"\n", vec![problem(11..14)]);
        assert_eq!(
            report.to_string(),
            "c.toml:2:5: wrong\n  |\n2 | ü = \"x\"\n  |     ^^^\n  = why: because\n\n1 problem in c.toml"
        );
        assert_eq!(report.to_json()["problems"][0]["start"], serde_json::json!({ "line": 2, "column": 5 }));
    }

    #[test]
    fn survives_spans_outside_the_text() {
        let report = Report::new("c.toml", "ü", vec![problem(1..99), problem(50..60)]);
        assert!(report.to_string().ends_with("2 problems in c.toml"));
    }
}

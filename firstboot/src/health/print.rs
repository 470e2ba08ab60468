// SPDX-License-Identifier: MIT OR Apache-2.0
//! The report for people and for programs.

use std::io::{IsTerminal, Write};

use super::{Check, Level, Report};

/// What to read first when several things are wrong: the deeper one explains the others.
const FIRST: [&str; 9] =
    ["etcd.quorum", "etcd.", "api.endpoint", "api.", "node.", "restarts.", "pods.", "lb.", "cert."];
/// Subjects are padded up to this width; longer ones push the finding aside.
const WIDEST: usize = 44;

/// Prints it; a closed pipe is not an error.
pub(super) fn to_stdout(report: &Report, json: bool) {
    let mut stdout = std::io::stdout();
    let text = if json {
        let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
        text.push('\n');
        text
    } else {
        // https://no-color.org
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        describe(report, colour)
    };
    let _ = stdout.write_all(text.as_bytes());
}

/// The table: topics in their order, the worst of each first, advice below what needs it.
pub(super) fn describe(report: &Report, colour: bool) -> String {
    let cluster = if report.cluster.is_empty() { "cluster unknown" } else { &format!("cluster {}", report.cluster) };
    let mut text = format!("{cluster}: {} (seen from {}, {})\n", totals(&report.checks), report.node, report.at);
    text += &format!("{}\n\n", report.headline);
    let width = |of: fn(&Check) -> &str, most: usize| {
        report.checks.iter().map(|check| of(check).chars().count()).filter(|width| *width <= most).max().unwrap_or(0)
    };
    let ids = width(|check| check.id, WIDEST);
    let subjects = width(|check| &check.subject, WIDEST);
    for check in &report.checks {
        let level = paint(check.level, colour);
        let line = format!("{level}  {:<ids$}  {:<subjects$}  {}", check.id, check.subject, check.finding);
        text += line.trim_end();
        text.push('\n');
        if !check.advice.is_empty() {
            text += &format!("{:9}-> {}\n", "", check.advice);
        }
    }
    text
}

/// The level's word, padded, in its colour.
fn paint(level: Level, colour: bool) -> String {
    let word = format!("{:<7}", level.word());
    let code = match level {
        Level::Ok => "32",
        Level::Info => "0",
        Level::Unknown => "35",
        Level::Warning => "33",
        Level::Error => "31",
    };
    if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word }
}

/// `1 error, 2 warnings`.
fn totals(checks: &[Check]) -> String {
    let count = |level| checks.iter().filter(|check| check.level == level).count();
    let plural = |count: usize, word: &str| match count {
        0 => None,
        1 => Some(format!("1 {word}")),
        count => Some(format!("{count} {word}s")),
    };
    let unknown = match count(Level::Unknown) {
        0 => None,
        count => Some(format!("{count} unknown")),
    };
    let parts: Vec<_> = [plural(count(Level::Error), "error"), plural(count(Level::Warning), "warning"), unknown]
        .into_iter()
        .flatten()
        .collect();
    if parts.is_empty() { "no errors, no warnings".to_owned() } else { parts.join(", ") }
}

/// One line that says how the cluster is.
pub(super) fn headline(level: Level, checks: &[Check]) -> String {
    let rank = |check: &&Check| FIRST.iter().position(|prefix| check.id.starts_with(prefix)).unwrap_or(FIRST.len());
    let worst: Vec<_> = checks.iter().filter(|check| check.level == level).collect();
    let Some(first) = worst.iter().copied().min_by_key(rank) else { return "nothing is known".to_owned() };
    let topic = first.topic();
    let what = match first.subject.as_str() {
        "" => format!("{topic}: {}", first.finding),
        subject => format!("{topic} {subject}: {}", first.finding),
    };
    let others = match worst.len() - 1 {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    };
    match level {
        Level::Ok | Level::Info => "healthy".to_owned(),
        Level::Unknown => format!("nothing wrong in sight, but not everything could be seen: {what}{others}"),
        Level::Warning => format!("working, with warnings: {what}{others}"),
        // Nothing can be written, or nobody is reached: what runs goes on, nothing changes any more.
        Level::Error if matches!(first.id, "etcd.quorum" | "api.endpoint") => format!("down: {what}{others}"),
        Level::Error => format!("degraded: {what}{others}"),
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! `firstboot health`: how the cluster is, as this node sees it.
//!
//! Three parts that know nothing of each other's work: [`collect`] asks programs, the kernel and files, each once and with
//! a time limit, and turns every failure into a fact; the topics judge those facts and are pure functions; [`print`] shows
//! what they found. It is run when things are broken, so nothing here may need a working cluster.

mod api;
mod certificates;
mod clock;
mod collect;
mod etcd;
mod json;
mod load_balancer;
mod machine;
mod nodes;
mod pods;
mod print;
mod programs;
mod record;
mod restarts;
#[cfg(test)]
mod tests;
mod time;

use std::path::Path;

use anyhow::{Context, Result};
use profiles::node::NodeProfile;
use serde::Serialize;

use crate::context::{STATE_DIR, below};
use crate::failure::one_line;
use crate::host::{Host, RealHost};
use crate::seed::{RawSeed, document};
use collect::Facts;

/// Version of the JSON report.
const SCHEMA: u32 = 1;

/// Exit codes, for `--help`: those of monitoring plugins, so that one can call it.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  no warning and no error
   1  at least one warning, no error
   2  at least one error
   3  nothing wrong was seen, but not everything could be looked at";

/// How bad a finding is; the worst is last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, nothing to do.
    Info,
    /// It could not be looked at.
    Unknown,
    /// It works, but will not stay so, or has no reserve.
    Warning,
    /// Something does not work.
    Error,
}

impl Level {
    fn exit_code(self) -> u8 {
        match self {
            Level::Ok | Level::Info => 0,
            Level::Warning => 1,
            Level::Error => 2,
            Level::Unknown => 3,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Info => "info",
            Level::Unknown => "unknown",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// Stable name; what is before the dot is the topic.
    id: &'static str,
    level: Level,
    /// What it is about: a node, a pod, a file; empty if it is about the whole topic.
    subject: String,
    /// One line.
    finding: String,
    /// What to do, in one line; empty if there is nothing to do.
    advice: String,
}

impl Check {
    fn new(id: &'static str, level: Level, subject: &str, finding: &str, advice: &str) -> Self {
        let line = |text: &str| crate::runner::redact(&one_line(text));
        Self { id, level, subject: subject.to_owned(), finding: line(finding), advice: line(advice) }
    }

    fn ok(id: &'static str, subject: &str, finding: impl AsRef<str>) -> Self {
        Self::new(id, Level::Ok, subject, finding.as_ref(), "")
    }

    fn info(id: &'static str, subject: &str, finding: impl AsRef<str>) -> Self {
        Self::new(id, Level::Info, subject, finding.as_ref(), "")
    }

    fn unknown(id: &'static str, subject: &str, finding: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self::new(id, Level::Unknown, subject, finding.as_ref(), advice.as_ref())
    }

    fn warning(id: &'static str, subject: &str, finding: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self::new(id, Level::Warning, subject, finding.as_ref(), advice.as_ref())
    }

    fn error(id: &'static str, subject: &str, finding: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self::new(id, Level::Error, subject, finding.as_ref(), advice.as_ref())
    }

    fn topic(&self) -> &'static str {
        self.id.split('.').next().unwrap_or_default()
    }
}

/// What a source of facts gave.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source<T> {
    /// This node has no way to know, or no reason to ask.
    NotAsked,
    /// It was asked; why there is no answer.
    Failed(String),
    /// The answer.
    Known(T),
}

/// The whole report; its JSON form is documented in docs/health.md.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    cluster: String,
    node: String,
    at: String,
    level: Level,
    headline: String,
    checks: Vec<Check>,
}

impl Report {
    fn new(cluster: &str, node: &str, now: u64, mut checks: Vec<Check>) -> Self {
        // Topics stay in the order in which they were judged, the worst of each comes first.
        let mut topics: Vec<&str> = Vec::new();
        for check in &checks {
            if !topics.contains(&check.topic()) {
                topics.push(check.topic());
            }
        }
        let place = |check: &Check| topics.iter().position(|topic| *topic == check.topic());
        checks.sort_by_key(|check| (place(check), std::cmp::Reverse(check.level)));
        let level = checks.iter().map(|check| check.level).max().unwrap_or(Level::Unknown);
        Self {
            schema: SCHEMA,
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            at: time::rfc3339(now),
            level,
            headline: print::headline(level, &checks),
            checks,
        }
    }

    /// Judges everything.
    fn of(profile: &NodeProfile, facts: &Facts) -> Self {
        let mut checks = nodes::judge(profile, facts);
        checks.extend(pods::judge(profile, facts));
        checks.extend(restarts::judge(facts));
        checks.extend(etcd::judge(profile, facts));
        checks.extend(api::judge(profile, facts));
        checks.extend(load_balancer::judge(profile, facts));
        checks.extend(certificates::judge(facts));
        checks.extend(clock::judge(profile, facts));
        checks.extend(machine::judge(facts));
        checks.extend(record::judge(profile, facts));
        Self::new(&profile.cluster.name, &profile.node.name, facts.now, checks)
    }
}

/// The command: prints the report and gives the exit code.
pub fn run(root: &Path, json: bool) -> u8 {
    let host = RealHost::new();
    let report = match profile(root) {
        Ok(profile) => Report::of(&profile, &collect::collect(root, &profile, &host, &programs::AtOnce)),
        Err(error) => {
            let advice = "run it as root on a node that firstboot made; see `firstboot status`";
            let check = Check::unknown("machine.profile", "", format!("{error:#}"), advice);
            Report::new("", &host.hostname(), host.unix_time(), vec![check])
        }
    };
    print::to_stdout(&report, json);
    report.level.exit_code()
}

/// The node's profile, from its own copy of the seed.
pub(crate) fn profile(root: &Path) -> Result<NodeProfile> {
    let dir = below(root, STATE_DIR).join("seed");
    let raw = RawSeed::read(&dir)?.with_context(|| format!("{} holds no seed", dir.display()))?;
    Ok(document::parse(&raw.meta_data, &raw.user_data)?.profile().clone())
}

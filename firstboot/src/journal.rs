// SPDX-License-Identifier: MIT OR Apache-2.0
//! The durable record of steps: one JSON object a line, fsynced before anything depends on it.
//!
//! A power cut may tear the last line, never an earlier one; a torn line is as if it had not been written.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::files;

/// Larger journals are rewritten with the latest record of each step: a unit that restarts for weeks must not fill the disk.
const COMPACT_ABOVE: u64 = 256 * 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A step is about to change the node.
    Begin,
    /// A step is applied, verified, and everything it wrote is on the disk.
    Done,
    /// An attempt of a step failed.
    Failed,
    /// All steps are done.
    Converged,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since 1970.
    pub at: u64,
    /// What happened.
    pub event: Event,
    /// To which step; empty for [`Event::Converged`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub step: String,
    /// Digest of what the step (or the whole run) was made from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// Why, how long.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// How far a step got, by the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It never ran.
    Never,
    /// It began and did not end well: a power cut, or a failure.
    Interrupted,
    /// It ended well, made from the input with this fingerprint.
    Done(String),
}

/// The journal of one node.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
    torn: bool,
    /// Tests: how many more records may be written before the power goes.
    #[cfg(test)]
    pub(crate) fuse: Option<usize>,
}

impl Journal {
    /// Opens or creates the journal.
    pub fn open(path: &Path) -> Result<Self> {
        let parent = path.parent().context("the journal has a parent directory")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let content = match fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let mut records = parse(&content);
        let mut torn = !content.is_empty() && !content.ends_with(b"\n");
        if content.len() as u64 > COMPACT_ABOVE {
            records = compact(records);
            let mut text = Vec::new();
            for record in &records {
                serde_json::to_writer(&mut text, record).context("encoding a journal record")?;
                text.push(b'\n');
            }
            files::write_atomic(path, &text, 0o600, None)?;
            torn = false;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", parent.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            records,
            torn,
            #[cfg(test)]
            fuse: None,
        })
    }

    /// Reads without creating or changing anything.
    pub fn read(path: &Path) -> Vec<Record> {
        fs::read(path).map(|content| parse(&content)).unwrap_or_default()
    }

    /// Appends a record; when this returns, it is on the disk.
    pub fn append(&mut self, record: Record) -> Result<()> {
        #[cfg(test)]
        if let Some(left) = self.fuse.as_mut() {
            anyhow::ensure!(*left > 0, "the power went out");
            *left -= 1;
        }
        let mut line = Vec::new();
        if self.torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, &record).context("encoding a journal record")?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_all())
            .with_context(|| format!("appending to {}", self.path.display()))?;
        self.torn = false;
        self.records.push(record);
        Ok(())
    }

    /// How far `step` got.
    pub fn progress(&self, step: &str) -> Progress {
        progress(&self.records, step)
    }

    /// Fingerprint of the last time `step` ended well, whatever came after.
    pub fn last_done(&self, step: &str) -> Option<String> {
        let done = self.records.iter().rev().find(|record| record.step == step && record.event == Event::Done);
        done.map(|record| record.fingerprint.clone())
    }

    /// Fingerprint of the last convergence, if nothing was begun after it.
    pub fn converged(&self) -> Option<&str> {
        self.records.last().filter(|last| last.event == Event::Converged).map(|last| last.fingerprint.as_str())
    }

    /// Whether this node ever converged.
    pub fn ever_converged(&self) -> bool {
        self.records.iter().any(|record| record.event == Event::Converged)
    }
}

/// How far `step` got, by these records.
pub fn progress(records: &[Record], step: &str) -> Progress {
    match records.iter().rev().find(|record| record.step == step) {
        None => Progress::Never,
        Some(record) if record.event == Event::Done => Progress::Done(record.fingerprint.clone()),
        Some(_) => Progress::Interrupted,
    }
}

fn parse(content: &[u8]) -> Vec<Record> {
    content.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn compact(records: Vec<Record>) -> Vec<Record> {
    let mut kept: Vec<Record> = Vec::new();
    for record in records.into_iter().rev() {
        // The latest record of each step, and of convergence (whose step is empty).
        if !kept.iter().any(|other| other.step == record.step) {
            kept.push(record);
        }
    }
    kept.reverse();
    kept
}

/// For tests/fuzz.
#[cfg(fuzzing)]
pub(crate) fn fuzz(content: &[u8]) {
    let records = parse(content);
    assert!(compact(records.clone()).len() <= records.len());
    for record in &records {
        progress(&records, &record.step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event, step: &str, fingerprint: &str) -> Record {
        Record { at: 1, event, step: step.into(), fingerprint: fingerprint.into(), detail: String::new() }
    }

    #[test]
    fn remembers_over_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/journal.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.progress("files"), Progress::Never);
        journal.append(record(Event::Begin, "files", "")).unwrap();
        assert_eq!(Journal::open(&path).unwrap().progress("files"), Progress::Interrupted);
        journal.append(record(Event::Done, "files", "abc")).unwrap();
        assert_eq!(Journal::open(&path).unwrap().progress("files"), Progress::Done("abc".into()));
        assert!(journal.converged().is_none());
        journal.append(record(Event::Converged, "", "all")).unwrap();
        assert_eq!(Journal::open(&path).unwrap().converged(), Some("all"));
        journal.append(record(Event::Begin, "etcd", "")).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert!(journal.converged().is_none() && journal.ever_converged());
    }

    #[test]
    fn a_line_torn_anywhere_is_as_if_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        journal.append(record(Event::Begin, "init", "")).unwrap();
        let before = fs::read(&path).unwrap().len();
        journal.append(record(Event::Done, "init", "f")).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in before..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            assert_eq!(journal.progress("init"), Progress::Interrupted, "cut at {cut}");
            // What is appended after a torn line must be readable again.
            journal.append(record(Event::Done, "init", "again")).unwrap();
            assert_eq!(Journal::open(&path).unwrap().progress("init"), Progress::Done("again".into()), "cut at {cut}");
        }
    }

    #[test]
    fn compaction_keeps_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut text = String::new();
        for event in [Event::Begin, Event::Done, Event::Converged] {
            let step = if event == Event::Converged { "" } else { "files" };
            text += &serde_json::to_string(&record(event, step, "x")).unwrap();
            text.push('\n');
        }
        let failed = serde_json::to_string(&record(Event::Failed, "etcd", "")).unwrap() + "\n";
        while text.len() as u64 <= COMPACT_ABOVE {
            text += &failed;
        }
        fs::write(&path, text).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert!(fs::read(&path).unwrap().len() < 1000);
        assert_eq!(journal.progress("files"), Progress::Done("x".into()));
        assert_eq!(journal.progress("etcd"), Progress::Interrupted);
        assert!(journal.ever_converged() && journal.converged().is_none());
    }
}

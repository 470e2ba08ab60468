// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/run/imgbuild/status.json`: what firstboot is doing, for programs and for `firstboot status`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bundle::Origin;

/// Version of this file's format.
pub const SCHEMA: u32 = 1;

/// What the whole node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking for the seed, running steps.
    Running,
    /// The node is what its profile says.
    Converged,
    /// A step failed; see `failure`.
    Failed,
}

/// What one step is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Its turn has not come.
    Pending,
    /// Now.
    Running,
    /// Applied and verified by this run.
    Done,
    /// There was nothing to do.
    AlreadyDone,
    /// It failed.
    Failed,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// Stable name.
    pub id: String,
    /// For people.
    pub title: String,
    /// What it is doing.
    pub state: StepState,
    /// How long it took so far, in seconds.
    pub seconds: u64,
}

/// Why the node failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureStatus {
    /// Which step.
    pub step: String,
    /// The exit code.
    pub exit: u8,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The node's name; empty while the seed is looked for.
    pub node: String,
    /// How the node's operating system came to be.
    #[serde(default)]
    pub origin: Origin,
    /// What the whole node is doing.
    pub phase: Phase,
    /// The step that is running.
    #[serde(default)]
    pub step: Option<String>,
    /// What it waits for.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// How long this run took so far, in seconds.
    pub seconds: u64,
    /// All steps, in order.
    #[serde(default)]
    pub steps: Vec<StepStatus>,
    /// Why the node failed.
    #[serde(default)]
    pub failure: Option<FailureStatus>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            node: String::new(),
            origin: Origin::default(),
            phase: Phase::Running,
            step: None,
            waiting_for: None,
            seconds: 0,
            steps: Vec::new(),
            failure: None,
        }
    }
}

/// Keeps the file. Losing it loses nothing but a view: it is in memory, and the journal is the truth.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    /// What the file says.
    pub status: Status,
}

impl StatusFile {
    /// A status that will be written to `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), status: Status::default() }
    }

    /// Changes the status and rewrites the file, atomically for its readers.
    pub fn update(&mut self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status);
        let Ok(mut text) = serde_json::to_vec_pretty(&self.status) else { return };
        text.push(b'\n');
        let temporary = self.path.with_extension("json.new");
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        // A full /run must not stop the node from converging.
        let _ = fs::create_dir_all(parent)
            .and_then(|()| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &self.path));
    }

    /// Changes one step.
    pub fn step(&mut self, id: &str, state: StepState, seconds: u64) {
        self.update(|status| {
            status.step = (state == StepState::Running).then(|| id.to_owned());
            status.waiting_for = None;
            if let Some(step) = status.steps.iter_mut().find(|step| step.id == id) {
                step.state = state;
                step.seconds = seconds;
            }
        });
    }
}

/// Reads the file.
pub fn read(path: &Path) -> anyhow::Result<Status> {
    use anyhow::Context;
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imgbuild/status.json");
        let mut file = StatusFile::new(&path);
        let step = StepStatus { id: "etcd".into(), title: "t".into(), state: StepState::Pending, seconds: 0 };
        file.update(|status| status.steps.push(step));
        file.step("etcd", StepState::Running, 0);
        file.update(|status| status.waiting_for = Some("etcd to be healthy".into()));
        let read_back = read(&path).unwrap();
        assert_eq!(read_back, file.status);
        assert_eq!(read_back.step.as_deref(), Some("etcd"));
        file.step("etcd", StepState::Done, 7);
        assert_eq!(read(&path).unwrap().waiting_for, None);
    }
}

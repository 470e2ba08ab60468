// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every step may use.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use profiles::node::NodeProfile;

use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::host::Host;
use crate::journal::{Journal, Progress};
use crate::node::NodePlan;
use crate::runner::{Command, Feed, Output, Runner, redact};
use crate::status::StatusFile;

/// State that outlives a boot.
pub const STATE_DIR: &str = "/var/lib/imgbuild";
/// State of this boot.
pub const RUN_DIR: &str = "/run/imgbuild";
/// The payload.
pub const PAYLOAD_DIR: &str = "/opt/imgbuild";

/// What every step may use: the plan of the node, and the seams to the node itself.
pub struct Cx<'a> {
    /// `/`, or a directory that plays the node in tests.
    pub root: PathBuf,
    /// What the node should become.
    pub plan: &'a NodePlan,
    /// Runs programs.
    pub runner: &'a dyn Runner,
    /// The kernel.
    pub host: &'a dyn Host,
    /// Lines for people.
    pub console: &'a Console,
    /// The durable record.
    pub journal: RefCell<Journal>,
    /// The view of this boot.
    pub status: RefCell<StatusFile>,
    /// The step that is running, for messages.
    pub step: RefCell<&'static str>,
    /// Steps that an earlier attempt or boot left half-way.
    pub interrupted: RefCell<BTreeSet<&'static str>>,
}

impl std::fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cx").field("root", &self.root).field("step", &self.step).finish_non_exhaustive()
    }
}

/// What a poll found.
#[derive(Debug)]
pub enum Poll<T> {
    /// What was waited for.
    Ready(T),
    /// Not yet, and what is missing.
    Pending(String),
}

impl Cx<'_> {
    /// The node profile.
    pub fn profile(&self) -> &NodeProfile {
        &self.plan.profile
    }

    /// An absolute path of the node, below `root`.
    pub fn path(&self, absolute: &str) -> PathBuf {
        below(&self.root, absolute)
    }

    /// A line about the running step, on the consoles.
    pub fn say(&self, text: &str) {
        let step = *self.step.borrow();
        self.console.say(step, text);
    }

    /// A detail for the log.
    pub fn log(&self, text: &str) {
        let step = *self.step.borrow();
        self.console.log(step, text);
    }

    /// How far the step `id` got, by the journal.
    pub fn progress(&self, id: &str) -> Progress {
        self.journal.borrow().progress(id)
    }

    /// Runs a program; any exit status is fine. Its argv, duration and exit go to the log.
    pub fn try_run(&self, command: &Command) -> Result<Output> {
        self.run_with(command, None, &mut |_| {})
    }

    /// Runs a program that must succeed.
    pub fn run(&self, command: &Command) -> Result<Output> {
        let output = self.try_run(command)?;
        self.expect_success(command, output)
    }

    /// Runs a program with input, and hands out its lines.
    pub fn run_with(&self, command: &Command, feed: Option<Feed<'_>>, on_line: &mut dyn FnMut(&str)) -> Result<Output> {
        let output = self.runner.run(command, feed, on_line)?;
        self.log_end(command, &output);
        Ok(output)
    }

    /// Runs programs that must succeed, `at_once` of them at a time; `each` gets them in the order in which they end.
    pub fn run_all(&self, commands: &[Command], at_once: usize, each: &mut dyn FnMut(usize, Result<Output>)) {
        self.runner.run_all(commands, at_once, &mut |at, end| {
            each(
                at,
                end.and_then(|output| {
                    self.log_end(&commands[at], &output);
                    self.expect_success(&commands[at], output)
                }),
            );
        });
    }

    fn log_end(&self, command: &Command, output: &Output) {
        self.log(&format!("ran `{}` in {:.1} s, exit {}", command, output.elapsed.as_secs_f32(), output.status));
    }

    /// Turns a failed exit into an error with the tail of stderr.
    pub fn expect_success(&self, command: &Command, output: Output) -> Result<Output> {
        if output.success() {
            return Ok(output);
        }
        let said = if output.stderr_tail.is_empty() { output.stdout.trim() } else { output.stderr_tail.trim() };
        bail!("`{command}` exited with {}: {}", output.status, redact(said));
    }

    /// Polls until ready, first every `pause`, then less and less often: a poll is a program with a TLS handshake, on a
    /// machine that may be waiting for its own processor. Shows what it waits for when that changes and every 15 s; at
    /// the deadline the run ends with exit code 40 and `hint`.
    pub fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        pause: Duration,
        hint: &str,
        mut poll: impl FnMut() -> Result<Poll<T>>,
    ) -> Result<T> {
        let started = self.host.uptime();
        let mut shown: Option<(String, Duration)> = None;
        loop {
            let begun = self.host.uptime();
            let missing = match poll()? {
                Poll::Ready(value) => {
                    self.status.borrow_mut().update(|status| status.waiting_for = None);
                    return Ok(value);
                }
                Poll::Pending(missing) => missing,
            };
            let now = self.host.uptime();
            let (waited, took) = (now.saturating_sub(started), now.saturating_sub(begun));
            let text = if missing.is_empty() { what.to_owned() } else { format!("{what} ({missing})") };
            if waited >= deadline {
                let reason = format!("waited {} s for {text}", waited.as_secs());
                return Err(Failure::new(Exit::Deadline, reason, hint).into());
            }
            let news = shown
                .as_ref()
                .is_none_or(|(last, at)| *last != text || waited.saturating_sub(*at) >= Duration::from_secs(15));
            // The first moments of a wait are not worth a line.
            if news && waited >= Duration::from_secs(2) {
                self.say(&format!("waiting for {text}, {} of {} s", waited.as_secs(), deadline.as_secs()));
                shown = Some((text.clone(), waited));
            }
            self.status.borrow_mut().update(|status| {
                status.waiting_for = Some(text);
                status.seconds = self.host.uptime().as_secs();
            });
            // A tenth of the time waited makes no wait longer by more than that.
            let seldom = (waited / 10).min(LONGEST_PAUSE);
            // And what asks must not be what keeps the machine busy.
            let pause = pause.max(seldom).max((took * 3).min(LONGEST_PAUSE * 6));
            self.host.sleep(pause.min(deadline - waited));
        }
    }
}

/// Between two polls of a long wait: what people still call "at once" when they have plugged the cable in.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// `absolute` below `root`.
pub fn below(root: &Path, absolute: &str) -> PathBuf {
    root.join(absolute.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lab;

    #[test]
    fn a_wait_says_what_it_waits_for_and_gives_up() {
        let lab = Lab::new();
        let cx = lab.cx();
        let error = cx
            .wait_for::<()>("etcd", Duration::from_secs(40), Duration::from_secs(1), "look at etcd", || {
                Ok(Poll::Pending("no answer".into()))
            })
            .unwrap_err();
        let failure = Failure::from_error(&error, Exit::Internal, "");
        assert_eq!(failure.exit, Exit::Deadline);
        assert_eq!(failure.reason, "waited 40 s for etcd (no answer)");
        let lines = lab.console_lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], "firstboot: master-1: test: waiting for etcd (no answer), 2 of 40 s");
        let status = crate::status::read(&lab.root().join("run/imgbuild/status.json")).unwrap();
        assert_eq!(status.waiting_for.as_deref(), Some("etcd (no answer)"));
    }

    #[test]
    fn a_failed_program_is_quoted() {
        let lab = Lab::new();
        lab.runner.answer("false", 1, "", "some stderr\nabcdeg.0123456789abcdex");
        let error = lab.cx().run(&Command::new("false", ["-x"])).unwrap_err();
        assert_eq!(error.to_string(), "`false -x` exited with 1: some stderr\n<token>");
        assert!(lab.log().contains("ran `false -x` in 0.0 s, exit 1"));
    }
}

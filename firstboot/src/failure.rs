// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures a person reads: what went wrong, what to do, and the exit code that says which kind it was.

use std::fmt;

/// Exit codes of `firstboot apply`: a documented interface (docs/firstboot.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The node is what its profile says.
    Converged = 0,
    /// No seed, or one that cannot be used.
    Seed = 10,
    /// The machine does not fit its profile.
    Preflight = 20,
    /// A step failed, all its attempts included.
    Step = 30,
    /// A wait ran into its deadline.
    Deadline = 40,
    /// A defect of firstboot or of the node's own disk.
    Internal = 50,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// A failure with its exit code and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub exit: Exit,
    /// What went wrong, in one line.
    pub reason: String,
    /// What to do about it, in one line.
    pub hint: String,
}

impl Failure {
    /// A failure of kind `exit`.
    pub fn new(exit: Exit, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, reason: one_line(&reason.into()), hint: one_line(&hint.into()) }
    }

    /// No seed, or one that cannot be used.
    pub fn seed(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Exit::Seed, reason, hint)
    }

    /// The machine does not fit.
    pub fn preflight(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Exit::Preflight, reason, hint)
    }

    /// The failure inside `error` if there is one, else a failure of kind `otherwise` that quotes all its causes.
    pub fn from_error(error: &anyhow::Error, otherwise: Exit, hint: &str) -> Self {
        match error.downcast_ref::<Failure>() {
            Some(failure) => failure.clone(),
            None => Self::new(otherwise, format!("{error:#}"), hint),
        }
    }

    /// Whether trying again at once could help. A refusal and a deadline already had their time.
    pub fn worth_retrying(&self) -> bool {
        matches!(self.exit, Exit::Step)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Failure {}

/// Console lines are read one at a time, and `FAILED …` must be one of them.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_typed_failure_survives_context() {
        let error =
            Err::<(), _>(Failure::preflight("too little memory", "add memory")).context("checking").unwrap_err();
        let failure = Failure::from_error(&error, Exit::Step, "-");
        assert_eq!((failure.exit, failure.reason.as_str()), (Exit::Preflight, "too little memory"));
    }

    #[test]
    fn reasons_are_one_line() {
        let error = anyhow::anyhow!("first\n\n  second  \n").context("running x");
        assert_eq!(Failure::from_error(&error, Exit::Step, "h").reason, "running x: first | second");
    }
}

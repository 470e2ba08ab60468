// SPDX-License-Identifier: MIT OR Apache-2.0

//! What kind of failure an error is: decides the exit code and carries what the person at the keyboard can do about it.
//! A [`Failure`] travels inside an [`anyhow::Error`]; knows nothing of terminals.

use std::error::Error as StdError;
use std::io;

/// What kind of failure ended a command. The exit codes are a documented interface (`imgbuild --help`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for cannot be done as written: a bad cluster file, an unknown node, a missing input.
    User,
    /// A defect of imgbuild.
    Internal,
    /// The surroundings: network unreachable, disk full, no permission.
    Environment,
    /// Something is not what it claims to be: a signature, a sha256, a store object, the completeness proof.
    Verification,
    /// The lock is not the newest, which somebody asked to be told by the exit code.
    Outdated,
}

impl ErrorKind {
    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Internal => 2,
            Self::Environment => 3,
            Self::Verification => 4,
            Self::Outdated => 5,
        }
    }
}

/// A failure whose kind is known, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub kind: ErrorKind,
    /// What failed, with the value in it; no trailing period.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What caused it.
    #[source]
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// A failure of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }
    /// What was asked for cannot be done as written.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::User, message)
    }
    /// The surroundings failed.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Environment, message)
    }
    /// Something is not what it claims to be.
    pub fn verification(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Verification, message)
    }
    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Adds what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
    /// An I/O error while `doing` something: names the full disk or the missing permission and what to do about it.
    pub fn io(doing: impl Into<String>, error: io::Error) -> Self {
        let doing = doing.into();
        match io_hint(&error) {
            Some(hint) => Self::environment(doing).hint(hint).caused_by(error),
            None => Self::new(ErrorKind::Environment, doing).caused_by(error),
        }
    }
}

/// What to do about an I/O error, where that is known.
fn io_hint(error: &io::Error) -> Option<&'static str> {
    Some(match error.kind() {
        io::ErrorKind::StorageFull => "the disk is full: free some space, or name another place with --store or --out",
        io::ErrorKind::QuotaExceeded => {
            "the disk quota is used up: free some space, or name another place with --store or --out"
        }
        io::ErrorKind::FileTooLarge => "the file size limit of this shell or filesystem is too low (see `ulimit -f`)",
        io::ErrorKind::PermissionDenied => {
            "no permission: run as the owner of this folder, or name another one with --store or --out"
        }
        io::ErrorKind::ReadOnlyFilesystem => "the filesystem is read-only: name another folder with --store or --out",
        _ => return None,
    })
}

/// The kind of an error: that of the outermost [`Failure`] in it, or what its I/O error says, or internal.
pub fn kind(error: &anyhow::Error) -> ErrorKind {
    if let Some(failure) = failure(error) {
        return failure.kind;
    }
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    if io.is_some() { ErrorKind::Environment } else { ErrorKind::Internal }
}

/// What to do about an error, if that is known.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    let mut failures = error.chain().filter_map(|cause| cause.downcast_ref::<Failure>());
    let direct = failure(error).and_then(|failure| failure.hint.clone());
    direct.or_else(|| failures.find_map(|failure| failure.hint.clone())).or_else(|| {
        let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>())?;
        io_hint(io).map(str::to_owned)
    })
}

fn failure(error: &anyhow::Error) -> Option<&Failure> {
    // `downcast_ref` sees a Failure that was attached with `.context(…)`, which the chain shows under another type.
    error.downcast_ref().or_else(|| error.chain().find_map(|cause| cause.downcast_ref()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn kind_and_hint_survive_contexts() {
        let root: anyhow::Result<()> = Err(Failure::verification("sha256 differs").hint("fetch again").into());
        let error = root.context("fetching bash").context("building").unwrap_err();
        assert_eq!(kind(&error), ErrorKind::Verification);
        assert_eq!(kind(&error).exit_code(), 4);
        assert_eq!(hint(&error).unwrap(), "fetch again");
    }

    #[test]
    fn a_failure_added_as_context_counts() {
        let root: anyhow::Result<()> = Err(anyhow::anyhow!("connection refused"));
        let error = root.context(Failure::environment("mirror unreachable").hint("check it")).unwrap_err();
        let error = error.context("locking");
        assert_eq!((kind(&error).exit_code(), hint(&error).as_deref()), (3, Some("check it")));
    }

    #[test]
    fn io_errors_are_the_environment_and_say_what_to_do() {
        for (io_kind, wanted) in [
            (io::ErrorKind::StorageFull, "the disk is full"),
            (io::ErrorKind::PermissionDenied, "no permission"),
            (io::ErrorKind::ReadOnlyFilesystem, "read-only"),
        ] {
            let error = anyhow::Error::new(io::Error::from(io_kind)).context("writing an object");
            assert_eq!(kind(&error), ErrorKind::Environment);
            assert!(hint(&error).unwrap().contains(wanted));
            let error = anyhow::Error::new(Failure::io("writing an object", io_kind.into()));
            assert!(hint(&error).unwrap().contains(wanted));
        }
        assert_eq!(kind(&anyhow::anyhow!("bug")).exit_code(), 2);
    }
}

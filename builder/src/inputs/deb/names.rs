// SPDX-License-Identifier: MIT OR Apache-2.0

//! Paths in archives: what may be written where. The one place that decides whether a path is safe.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::error::Failure;

/// No path is longer (PATH_MAX of linux/limits.h).
pub(crate) const LONGEST_PATH: usize = 4096;
/// Most names in a path; the deepest of Debian's packages have some thirty. Every folder that a path leads through is kept as a
/// path of its own, so that without this bound a path would cost the square of its length.
const DEEPEST: usize = 128;

/// What is at a path, as far as the safety of other paths depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A directory.
    Dir,
    /// A regular file, under any of its names.
    File,
    /// A symbolic link.
    Symlink,
    /// A device or a pipe.
    Special,
}

/// How strictly an archive is read. Nothing is ever unpacked onto this machine, so both are safe; what is strict finds more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Rules {
    /// A package: nothing is odd in it.
    #[default]
    Package,
    /// An installed system, or a layer of an image, as whatever program wrote it: absolute paths, links that climb above the
    /// root (where `..` is the root), paths through links and second entries for a path are all taken as they would work
    /// there. Hard links may name a file of a lower layer. `..` in a path remains refused.
    System,
}

/// The paths of an archive seen so far.
#[derive(Debug, Default)]
pub(crate) struct Names {
    seen: HashMap<String, What>,
    rules: Rules,
}

fn unsafe_path(path: &str, why: &str) -> anyhow::Error {
    Failure::verification(format!("`{path}` {why}: refusing this archive"))
        .hint("the archive is broken or malicious: take it from another source, and tell who published it")
        .into()
}

/// A path as archives write it (`./usr/bin/`) as a normalised relative path (`usr/bin`).
pub(crate) fn clean(raw: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(raw)
        .with_context(|| format!("the path `{}` is not UTF-8", String::from_utf8_lossy(raw)))?;
    if text.starts_with('/') {
        return Err(unsafe_path(text, "is an absolute path"));
    }
    if text.contains('\0') {
        return Err(unsafe_path(text, "contains a NUL byte"));
    }
    if text.len() > LONGEST_PATH || text.split('/').count() > DEEPEST {
        let start: String = text.chars().take(60).collect();
        return Err(unsafe_path(&format!("{start}…"), "is longer or deeper than any path"));
    }
    let mut out = String::with_capacity(text.len());
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(unsafe_path(text, "leads out of the archive")),
            part => {
                if !out.is_empty() {
                    out.push('/');
                }
                out.push_str(part);
            }
        }
    }
    Ok(out)
}

impl Names {
    /// No paths yet.
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// [`clean`], by the rules.
    pub(crate) fn clean(&self, raw: &[u8]) -> Result<String> {
        match self.rules {
            Rules::Package => clean(raw),
            Rules::System => clean(&raw[raw.iter().take_while(|byte| **byte == b'/').count()..]),
        }
    }

    /// Notes an entry.
    ///
    /// # Errors
    /// If its path leads through something that is not a directory, or is already something else.
    pub(crate) fn add(&mut self, path: &str, what: What) -> Result<()> {
        if self.rules == Rules::System {
            return Ok(());
        }
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.seen.get(parent) {
                Some(What::Dir) => {}
                Some(What::Symlink) => return Err(unsafe_path(path, "leads through a symbolic link of the archive")),
                Some(_) => return Err(unsafe_path(path, "leads through something that is not a directory")),
                None => {
                    self.seen.insert(parent.to_owned(), What::Dir);
                }
            }
        }
        match self.seen.insert(path.to_owned(), what) {
            Some(before) if before != what => Err(unsafe_path(path, "is in the archive twice, as different things")),
            _ => Ok(()),
        }
    }

    /// The target of a hard link, which must be an earlier file of the archive.
    pub(crate) fn hard_link_target(&self, raw: &[u8]) -> Result<String> {
        let target = self.clean(raw)?;
        if self.rules == Rules::System {
            return Ok(target);
        }
        match self.seen.get(&target) {
            Some(What::File) => Ok(target),
            _ => Err(unsafe_path(&target, "is the target of a hard link, but no earlier file of the archive")),
        }
    }

    /// The target of the symbolic link at `path`: anything that stays below the root. An absolute target does, as the
    /// root is that of the image.
    pub(crate) fn symlink_target(&self, path: &str, raw: &[u8]) -> Result<String> {
        let target = std::str::from_utf8(raw).context("the target of a symbolic link is not UTF-8")?;
        if target.is_empty() || target.len() > LONGEST_PATH || target.contains('\0') {
            return Err(unsafe_path(path, "is a symbolic link without a valid target"));
        }
        let mut depth = if target.starts_with('/') { 0 } else { path.matches('/').count() };
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." if depth == 0 && (target.starts_with('/') || self.rules == Rules::System) => {}
                ".." if depth == 0 => {
                    return Err(unsafe_path(path, &format!("is a symbolic link to `{target}`, above the root")));
                }
                ".." => depth -= 1,
                _ => depth += 1,
            }
        }
        Ok(target.to_owned())
    }
}

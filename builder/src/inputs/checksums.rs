// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists of checksums as projects publish them beside their releases. Knows no files and no network.
//!
//! Every project has its own form, and these are read, one checksum a line:
//!
//! | line | who writes it |
//! |---|---|
//! | `checksum` | Kubernetes, crictl: a file of its own beside each file, often without a line end |
//! | `checksum  name`, `checksum *name` | `sha256sum`: containerd, runc, CNI plugins, etcd |
//! | `SHA256 (name) = checksum` | `sha256sum --tag`, BSD |
//! | `SHA2-256(name)= checksum` | `openssl dgst` |
//!
//! A checksum is SHA-256 or SHA-512 in hex, told apart by its length; lines with anything else, such as weaker
//! checksums, comments, or an OpenPGP signature around the list, are passed over. Names may have folders before them.

use std::collections::BTreeSet;
use std::fmt;

use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha512};

use super::http::host_and_path;
use crate::store::Digest;

/// How many names are shown of a list that lacks the one that was wanted.
const MOST_NAMES: usize = 3;

/// What a file is, by one algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Checksum {
    /// SHA-256.
    Sha256(Digest),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl Checksum {
    /// The SHA-512 that a hasher has come to.
    pub(crate) fn of_sha512(hasher: Sha512) -> Self {
        Self::Sha512(hasher.finalize().into())
    }

    /// The SHA-256, if it is one.
    pub(crate) fn sha256(&self) -> Option<Digest> {
        if let Self::Sha256(digest) = self { Some(*digest) } else { None }
    }

    fn parse(hex: &str) -> Option<Self> {
        if hex.len() != 128 {
            return hex.parse().ok().map(Self::Sha256);
        }
        // As long as two of the others.
        let (first, second): (Digest, Digest) = (hex.get(..64)?.parse().ok()?, hex.get(64..)?.parse().ok()?);
        let mut whole = [0; 64];
        whole[..32].copy_from_slice(first.as_bytes());
        whole[32..].copy_from_slice(second.as_bytes());
        Some(Self::Sha512(whole))
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.algorithm())?;
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Sha512(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// Why a list says nothing of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Silence {
    /// It is no list.
    #[error("is no list of checksums: no line of it has a SHA-256 or a SHA-512")]
    Empty,
    /// It is one of other files.
    #[error("has no checksum of `{file}`{}", nearest(.names))]
    NotNamed {
        /// Name of the file.
        file: String,
        /// Names that it has, those first that are most like it.
        names: Vec<String>,
    },
    /// It names several files that this may be, or says different things of it.
    #[error("has several checksums of `{file}`, and nothing says which one counts{}", nearest(.names))]
    Ambiguous {
        /// Name of the file.
        file: String,
        /// The names that the checksums have there.
        names: Vec<String>,
    },
}

fn nearest(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { String::new() } else { format!(" (it has {})", names.join(", ")) }
}

/// A list of checksums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    entries: Vec<Entry>,
}

/// A line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// None where a checksum stands alone.
    name: Option<String>,
    checksum: Checksum,
}

impl List {
    /// Reads a list. What is none has no entries.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        // Editors on Windows begin a file with a byte order mark.
        let entries = text.trim_start_matches('\u{feff}').lines().filter_map(|line| entry(line.trim())).collect();
        Self { entries }
    }

    /// What the list says of the file at `url`: at most one checksum of each kind. Of several files with the same name,
    /// that counts whose folders are those of the address.
    ///
    /// # Errors
    /// If it says nothing of it, or nothing clear.
    pub(crate) fn of(&self, url: &str) -> Result<BTreeSet<Checksum>, Silence> {
        let wanted = path_of(url);
        let file = wanted.last().cloned().unwrap_or_default();
        let named: Vec<(&str, &Checksum)> = self.entries.iter().filter_map(Entry::named).collect();
        let found: Vec<(&str, &Checksum)> = if named.is_empty() {
            self.entries.iter().map(|entry| ("", &entry.checksum)).collect()
        } else {
            let ranked: Vec<_> = named.iter().map(|entry| (in_common(entry.0, &wanted), entry)).collect();
            let best = ranked.iter().map(|(common, _)| *common).max().filter(|common| *common > 0);
            ranked.into_iter().filter(|(common, _)| Some(*common) == best).map(|(_, entry)| *entry).collect()
        };
        if self.entries.is_empty() {
            return Err(Silence::Empty);
        }
        if found.is_empty() {
            let names = profiles::nearest(&file, named.iter().map(|(name, _)| *name), MOST_NAMES);
            return Err(Silence::NotNamed { file, names: names.into_iter().map(str::to_owned).collect() });
        }
        let checksums: BTreeSet<Checksum> = found.iter().map(|(_, checksum)| **checksum).collect();
        let algorithms: BTreeSet<&str> = checksums.iter().map(Checksum::algorithm).collect();
        if checksums.len() > algorithms.len() {
            let names: BTreeSet<&str> = found.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
            let names = names.into_iter().take(MOST_NAMES).map(str::to_owned).collect();
            return Err(Silence::Ambiguous { file, names });
        }
        Ok(checksums)
    }
}

impl Entry {
    fn named(&self) -> Option<(&str, &Checksum)> {
        Some((self.name.as_deref()?, &self.checksum))
    }
}

/// The parts of an address's path, decoded.
fn path_of(url: &str) -> Vec<String> {
    let (_, path) = host_and_path(url);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect()
}

/// How many of their last parts a name in a list and a path have in common.
fn in_common(name: &str, path: &[String]) -> usize {
    // Lists that were made on Windows have its separators.
    let parts: Vec<&str> = name.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".").collect();
    parts.iter().rev().zip(path.iter().rev()).take_while(|(own, wanted)| *own == wanted).count()
}

fn entry(line: &str) -> Option<Entry> {
    // coreutils begin a line so in whose name they had to escape something; such names are nobody's releases.
    let line = line.strip_prefix('\\').unwrap_or(line);
    tagged(line).or_else(|| plain(line))
}

/// `SHA256 (name) = checksum`
fn tagged(line: &str) -> Option<Entry> {
    let (left, hex) = line.rsplit_once('=')?;
    let (algorithm, name) = left.trim_end().strip_suffix(')')?.split_once('(')?;
    let checksum = Checksum::parse(hex.trim())?;
    let algorithm = algorithm.trim().to_ascii_lowercase().replace("sha2-", "sha");
    (algorithm == checksum.algorithm()).then(|| Entry { name: Some(name.to_owned()), checksum })
}

/// `checksum  name`, or a checksum alone.
fn plain(line: &str) -> Option<Entry> {
    let (hex, name) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let checksum = Checksum::parse(hex)?;
    let name = name.trim_start();
    // The asterisk is for files that were read as binary ones, the hyphen for what came through a pipe.
    let name = Some(name.strip_prefix('*').unwrap_or(name)).filter(|name| !name.is_empty() && *name != "-");
    Some(Entry { name: name.map(str::to_owned), checksum })
}

#[cfg(test)]
#[path = "checksums_tests.rs"]
mod tests;

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists of checksums as coreutils write them, `<sha256>  <path>`, one a line, and the signature beside one.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use profiles::signing::{SUFFIX, SUMS};

use crate::signing::Signer;
use crate::store::Digest;

/// A list as `sha256sum -c` reads it, sorted by path.
pub fn text(digests: &BTreeMap<String, Digest>) -> String {
    digests.iter().map(|(path, digest)| format!("{digest}  {path}\n")).collect()
}

/// Reads a list.
///
/// # Errors
/// The first line that is none, or leads out of the folder.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, Digest>, String> {
    let mut sums = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |why: &str| format!("line {}: {why}", number + 1);
        let (digest, path) = line.split_once("  ").ok_or_else(|| wrong("no checksum and path"))?;
        let digest = digest.parse().map_err(|e: anyhow::Error| wrong(&e.to_string()))?;
        let clean = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !clean {
            return Err(wrong(&format!("`{path}` leads out of the folder")));
        }
        if sums.insert(path.to_owned(), digest).is_some() {
            return Err(wrong(&format!("`{path}` for the second time")));
        }
    }
    Ok(sums)
}

/// Whether the path of a file below a folder is that of the folder's list: `SHA256SUMS`, `SHA256SUMS.<architecture>` of
/// a bundle.
pub(super) fn is_list(path: &str) -> bool {
    let Some(rest) = path.strip_prefix(SUMS) else { return false };
    rest.is_empty() || (rest.starts_with('.') && !rest.contains('/') && !path.ends_with(SUFFIX))
}

/// Whether a file is a list by its name: as [`is_list`], and `<cluster>.SHA256SUMS`.
pub(super) fn is_list_name(name: &str) -> bool {
    is_list(name) || name.strip_suffix(SUMS).is_some_and(|rest| rest.ends_with('.'))
}

/// Name of the signature over a list.
pub fn signature_of(list: &str) -> String {
    format!("{list}{SUFFIX}")
}

/// The signature over a list of a cluster's, as a file. What it says besides follows from the list: no clock takes
/// part.
pub fn sign(signer: &Signer, cluster: &str, list: &str, text: &str) -> String {
    signer.sign(text.as_bytes(), &format!("cluster:{cluster}\tfile:{list}\tsha256:{}", Digest::of(text.as_bytes())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn lists_are_told_by_their_names() {
        for name in ["SHA256SUMS", "SHA256SUMS.amd64"] {
            assert!(is_list(name) && is_list_name(name), "{name}");
        }
        for name in ["SHA256SUMS.minisig", "SHA256SUMS.amd64.minisig", "SHA256SUMS2", "a/SHA256SUMS", "SHA256SUMS.a/b"]
        {
            assert!(!is_list(name), "{name}");
        }
        assert!(is_list_name("lab.SHA256SUMS") && !is_list("lab.SHA256SUMS"));
        for name in ["labSHA256SUMS", "lab.SHA256SUMS.minisig"] {
            assert!(!is_list_name(name), "{name}");
        }
    }

    #[test]
    fn a_list_reads_back() {
        let list = BTreeMap::from([("a b".to_owned(), Digest::of(b"1")), ("c/d".to_owned(), Digest::of(b"2"))]);
        assert_eq!(parse(&text(&list)).unwrap(), list);
    }
}

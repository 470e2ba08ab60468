// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild verify`: whether an output is still what the build wrote.

use std::io::Read;
use std::path::Path;

use anyhow::Result;
use profiles::signing::PublicKey;

use crate::error::Failure;
use crate::output::verify::{Verified, verify};

/// Most problems that are listed: a list for a person.
const SHOWN: usize = 100;
const WANTED: &str = "--key-file wants the file `minisign.pub` that `minisign -G` wrote";
/// Longest file of a public key that is read, in bytes.
const KEY_MAX: u64 = 16 << 10;

pub(super) fn run(path: &Path, key: Option<PublicKey>, key_file: Option<&Path>) -> Result<()> {
    let key = key.map_or_else(|| key_file.map(read_key).transpose(), |key| Ok(Some(key)))?;
    let Verified { kind, checked, unchecked, problems, signatures } = verify(path, key.as_ref())?;
    if problems.is_empty() {
        tracing::info!("{}: {kind}: {checked} checksums compared, all right", path.display());
        for signature in signatures {
            tracing::info!("{signature}");
        }
        if !unchecked.is_empty() {
            tracing::info!("no checksum covers {}: read, and found whole", unchecked.join("; "));
        }
        return Ok(());
    }
    let lines: String = problems.iter().take(SHOWN).map(|problem| format!("\n  {problem}")).collect();
    let more = match problems.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    let message = format!("{}: {kind} that is not what was built:{lines}{more}", path.display());
    Err(Failure::verification(message).hint("copy or build it again; do not use this one").into())
}

/// The public key in a file of minisign's.
fn read_key(path: &Path) -> Result<PublicKey> {
    let doing = || format!("reading the public key {}", path.display());
    let file = std::fs::File::open(path).map_err(|e| Failure::user(doing()).hint(WANTED).caused_by(e))?;
    let mut text = String::new();
    file.take(KEY_MAX).read_to_string(&mut text).map_err(|e| Failure::user(doing()).hint(WANTED).caused_by(e))?;
    PublicKey::from_file(&text).map_err(|e| Failure::user(doing()).hint(WANTED).caused_by(e).into())
}

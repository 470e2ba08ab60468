// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild verify`: whether an output is still what the build wrote.

use std::path::Path;

use anyhow::Result;

use crate::error::Failure;
use crate::output::verify::{Verified, verify};

/// Most problems that are listed: a list for a person.
const SHOWN: usize = 100;

pub(super) fn run(path: &Path) -> Result<()> {
    let Verified { kind, checked, unchecked, problems } = verify(path)?;
    if problems.is_empty() {
        tracing::info!("{}: {kind}: {checked} checksums compared, all right", path.display());
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

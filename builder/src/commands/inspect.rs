// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild inspect`: say what is inside a built image.

use std::path::Path;

use anyhow::Result;

use crate::output::inspect;

pub(super) fn run(image: &Path, json: bool) -> Result<()> {
    let found = inspect::inspect(image)?;
    super::print(&if json { serde_json::to_string_pretty(&found)? } else { found.to_string() });
    Ok(())
}

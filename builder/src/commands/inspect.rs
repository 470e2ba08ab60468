// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild inspect`: say what is inside a built image.

use std::fmt::Display;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::output::{inspect, inspect_iso};

pub(super) fn run(image: &Path, json: bool) -> Result<()> {
    if inspect_iso::is_iso(image)? {
        return print(&inspect_iso::inspect(image)?, json);
    }
    print(&inspect::inspect(image)?, json)
}

fn print(found: &(impl Display + Serialize), json: bool) -> Result<()> {
    super::print(&if json { serde_json::to_string_pretty(found)? } else { found.to_string() });
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild lock`: resolve every input and write it down.

use anyhow::Result;

use crate::cli::Options;
use crate::commands::inputs::Room;
use crate::commands::{ClusterFile, open_store};
use crate::inputs::request::Update;

pub(super) fn run(options: &Options, update: Option<Vec<String>>) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let store = open_store(options)?;
    let update = match update {
        None => Update::Stale,
        Some(names) if names.is_empty() => Update::All,
        Some(names) => Update::Named(names.into_iter().collect()),
    };
    Room::open(&file, options, &store, false)?.relock(&file, &update)?;
    Ok(())
}

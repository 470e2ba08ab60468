// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild fetch`: bring every locked input into the store.

use anyhow::Result;

use crate::cli::Options;
use crate::commands::inputs::Room;
use crate::commands::{ClusterFile, open_store};

pub(super) fn run(options: &Options) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let store = open_store(options)?;
    Room::open(&file, options, &store, true)?.fetch_locked(&file)?;
    tracing::info!("every input of {} is in {}", file.path.display(), store.root().display());
    Ok(())
}

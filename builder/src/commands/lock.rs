//! `imgbuild lock`: resolve every input and write it down.

use anyhow::Result;

use crate::cli::Options;
use crate::commands::inputs::Room;
use crate::commands::{ClusterFile, open_store};
use crate::inputs::request::Update;

pub(super) fn run(options: &Options, update: bool) -> Result<()> {
    let file = ClusterFile::load(&options.cluster)?;
    let store = open_store(options)?;
    let update = if update { Update::All } else { Update::Stale };
    Room::open(&file, options, &store, false)?.relock(&file, &update)?;
    Ok(())
}

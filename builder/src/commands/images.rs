// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild images`: say which container images the nodes ask for and which the payload has, before anything is built.

use anyhow::{Context, Result};

use crate::assemble::{Bench, images};
use crate::cli::Options;
use crate::commands::{ClusterFile, inputs, jobs, open_store, print, warn};
use crate::error::Failure;

pub(super) fn run(options: &Options, json: bool) -> Result<()> {
    let mut file = ClusterFile::load(&options.cluster)?;
    file.cluster = images::part(&file.cluster);
    let store = open_store(options)?;
    let sources = inputs::ready_part(&file, options, &store)?;
    let bench = Bench { store: &store, cluster: &file.cluster, sources, jobs: jobs(options) };
    warn(&images::warnings(&bench)?);
    let report = images::report(&bench)?;
    match json {
        true => print(&serde_json::to_string_pretty(&report).context("writing the report")?),
        false => print(&report.text()),
    }
    match report.missing() {
        0 => Ok(()),
        missing => Err(Failure::user(format!("{missing} of the images that nodes will ask for are not there"))
            .hint("add what the list says to the cluster file, or bring the image in an archive that is there")
            .into()),
    }
}

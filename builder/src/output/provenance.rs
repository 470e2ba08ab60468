// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a build leaves beside its outputs: a bill of materials, a manifest that says what they were made from, and a
//! list of checksums of all that this build wrote, perhaps signed. None of it holds a secret, a clock or a path of this
//! machine.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::node::Architecture;
use profiles::signing::SUMS;
use rayon::prelude::*;
use serde::Serialize;

use super::cyclonedx::Bom;
use super::place::Placed;
use super::sums;
use crate::error::Failure;
use crate::signing::Signer;
use crate::store::Digest;

const SCHEMA: u32 = 1;
/// Raw disk images: hashing their zeros takes longer than building them.
const RAW: &str = "img";

/// What outputs were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    schema: u32,
    imgbuild: &'static str,
    /// Name of the cluster.
    pub cluster: String,
    /// Architecture of everything in them.
    pub architecture: Architecture,
    /// Nothing in them is dated later: seconds since 1970.
    pub source_epoch: u32,
    /// The nodes, in the cluster file's order.
    pub nodes: Vec<String>,
    /// SHA-256 of the cluster file.
    pub cluster_file: Digest,
    /// SHA-256 of the lock.
    pub lock: Digest,
    /// SHA-256 of the squashfs images, by the kind of node that has them; none where no output has any.
    pub images: BTreeMap<&'static str, Images>,
    /// The public key that installers ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<String>,
    sbom: Option<FileDigest>,
}

/// The squashfs images of nodes of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Images {
    /// The root.
    pub root: Digest,
    /// The payload.
    pub payload: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct FileDigest {
    file: String,
    sha256: Digest,
}

impl Manifest {
    /// What is known before anything is written.
    pub fn new(cluster: &str, architecture: Architecture, cluster_file: Digest, lock: Digest) -> Self {
        Self {
            schema: SCHEMA,
            imgbuild: env!("CARGO_PKG_VERSION"),
            cluster: cluster.to_owned(),
            architecture,
            source_epoch: 0,
            nodes: Vec::new(),
            cluster_file,
            lock,
            images: BTreeMap::new(),
            signing_key: None,
            sbom: None,
        }
    }
}

/// Writes `<cluster>.cdx.json`, `<cluster>.manifest.json` and `<cluster>.SHA256SUMS`, with its signature if there is a
/// `signer`, to `out`, where `outputs` lie. Gives the path of the list.
///
/// # Errors
/// Failing I/O. Each file appears whole or not at all, the list last.
pub fn write(
    out: &Path,
    bom: &Bom,
    mut manifest: Manifest,
    outputs: &[PathBuf],
    signer: Option<&Signer>,
) -> Result<PathBuf> {
    let cluster = manifest.cluster.clone();
    let path = |name: &str| out.join(format!("{cluster}.{name}"));
    let sbom = path("cdx.json");
    let bom = bom.to_json()?;
    place(&sbom, &bom)?;
    manifest.sbom = Some(FileDigest { file: name_in(out, &sbom)?, sha256: Digest::of(&bom) });
    let mut json = serde_json::to_vec_pretty(&manifest).context("writing the manifest")?;
    json.push(b'\n');
    let described = path("manifest.json");
    place(&described, &json)?;

    let mut files = vec![sbom, described];
    for output in outputs {
        files.extend(listed(output, signer.is_some())?);
    }
    let digests = files.into_par_iter().map(|file| {
        let reading = |e| Failure::io(format!("reading {}", file.display()), e);
        let (digest, _) = File::open(&file).and_then(|mut file| Digest::of_reader(&mut file)).map_err(reading)?;
        Ok((name_in(out, &file)?, digest))
    });
    let text = sums::text(&digests.collect::<Result<_>>()?);
    let list = path(SUMS);
    let signature = path(&sums::signature_of(SUMS));
    // That of an earlier list does not fit, whoever made it.
    match fs::remove_file(&signature) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Failure::io(format!("removing {}", signature.display()), e).into());
        }
        _ => {}
    }
    place(&list, text.as_bytes())?;
    if let Some(signer) = signer {
        place(&signature, sums::sign(signer, &cluster, &name_in(out, &list)?, &text).as_bytes())?;
    }
    Ok(list)
}

/// The files by which a list vouches for an output: a folder with a list of its own is known by that.
fn listed(output: &Path, with_raw: bool) -> Result<Vec<PathBuf>> {
    if !output.is_dir() {
        let is_raw = output.extension().is_some_and(|end| end == RAW);
        return Ok(if is_raw && !with_raw { vec![] } else { vec![output.to_owned()] });
    }
    let own = output.join(SUMS);
    if own.is_file() {
        return Ok(vec![own]);
    }
    let listing = |e| Failure::io(format!("listing {}", output.display()), e);
    let mut files = Vec::new();
    for entry in fs::read_dir(output).map_err(listing)? {
        files.extend(listed(&entry.map_err(listing)?.path(), with_raw)?);
    }
    Ok(files)
}

/// The path of a file below `out`, as a list has it.
fn name_in(out: &Path, file: &Path) -> Result<String> {
    let name = file.strip_prefix(out).with_context(|| format!("{} is not in {}", file.display(), out.display()))?;
    Ok(name.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?.to_owned())
}

/// Puts a file in its place that everybody may read.
fn place(path: &Path, bytes: &[u8]) -> Result<()> {
    let placed = Placed::new(path)?;
    let writing = |e| Failure::io(format!("writing {}", path.display()), e);
    placed.file().write_all(bytes).map_err(writing)?;
    placed.file().set_permissions(Permissions::from_mode(0o644)).map_err(writing)?;
    placed.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "provenance_tests.rs"]
mod tests;

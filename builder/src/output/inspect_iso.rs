// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looks into an installation image: which nodes it installs, and how large what is. Shows no secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use profiles::medium::{FOLDER, INDEX, Machine, Medium, SCHEMA};
use serde::Serialize;

use super::inspect::mib;
use super::medium::is_secret;
use crate::image::gpt::{self, Table, types};
use crate::image::{fat, iso9660};
use crate::store::Digest;

/// Largest index that is read: a node takes some 10 KiB of it.
const INDEX_MAX: u64 = 64 << 20;

/// What an installation image holds.
#[derive(Debug, Clone, Serialize)]
pub struct IsoInspection {
    /// Size of the image.
    pub size: u64,
    /// Volume label.
    pub label: String,
    /// SHA-256 of the index; the boot entries name it.
    pub medium: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the cluster.
    pub cluster_id: String,
    /// The nodes it installs.
    pub nodes: Vec<Installable>,
    /// Size of every file by path.
    pub files: BTreeMap<String, u64>,
    /// The partition table, by which it is booted from a USB stick.
    pub table: Table,
    /// Size of every file of the EFI system partition by path.
    pub esp: BTreeMap<String, u64>,
    /// The boot loader's configuration by path.
    pub menu: BTreeMap<String, String>,
}

/// A node that is installed from it.
#[derive(Debug, Clone, Serialize)]
pub struct Installable {
    /// Its name.
    pub name: String,
    /// Least size of its disk.
    pub disk_size: u64,
    /// Bytes that are written to its disk.
    pub written: u64,
    /// How its machine is known.
    pub machine: Machine,
}

/// Whether the file at `path` is an ISO 9660 image.
///
/// # Errors
/// Failing I/O.
pub fn is_iso(path: &Path) -> Result<bool> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    iso9660::is_image(&mut file)
}

/// Looks into the installation image at `path`.
///
/// # Errors
/// None of ours, a damaged one, or failing I/O.
pub fn inspect(path: &Path) -> Result<IsoInspection> {
    look_at(path).with_context(|| format!("reading {}", path.display()))
}

fn look_at(path: &Path) -> Result<IsoInspection> {
    let mut file = File::open(path).context("opening it")?;
    let size = file.metadata().context("looking at it")?.len();
    let index_path = format!("{FOLDER}/{INDEX}");
    let found = iso9660::read(&file, INDEX_MAX, |path| path == index_path)?;
    let Some(json) = found.bytes.get(&index_path) else { bail!("it has no {index_path}: not one of ours") };
    let index: Medium = serde_json::from_slice(json).with_context(|| format!("reading its {index_path}"))?;
    if index.schema != SCHEMA {
        bail!("its {index_path} has schema {}, and this imgbuild reads {SCHEMA}", index.schema);
    }
    for (path, expected) in &index.files {
        let has = found.files.get(&format!("{FOLDER}/{path}"));
        if has != Some(&expected.size) {
            bail!("its {FOLDER}/{path} should have {} bytes, and has {}", expected.size, has.copied().unwrap_or(0));
        }
    }
    let table = gpt::read(&mut file)?;
    let esp = table.partitions.iter().find(|partition| partition.kind == types::ESP);
    let esp = esp.context("it has no EFI system partition")?;
    let esp = fat::read(&file, esp.offset, esp.len, |path| path.ends_with(".conf"))
        .context("reading its EFI system partition")?;
    let text = |(path, bytes): (String, Vec<u8>)| (path, String::from_utf8_lossy(&bytes).into_owned());
    let nodes = index.nodes.into_iter().map(|node| Installable {
        written: node.pieces.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.len)),
        name: node.name,
        disk_size: node.disk_size,
        machine: node.machine,
    });
    Ok(IsoInspection {
        size,
        medium: Digest::of(json).to_string(),
        label: found.label,
        cluster: index.cluster,
        cluster_id: index.cluster_id,
        nodes: nodes.collect(),
        files: found.files,
        table,
        esp: esp.files,
        menu: esp.bytes.into_iter().map(text).collect(),
    })
}

impl fmt::Display for IsoInspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, medium, cluster, cluster_id, .. } = self;
        writeln!(f, "installation image {label} of cluster {cluster}, {}", mib(self.size))?;
        writeln!(f, "  cluster id {cluster_id}\n  medium {medium}")?;
        for Installable { name, disk_size, written, machine } in &self.nodes {
            writeln!(f, "\n{name}: writes {} to a disk of at least {}", mib(*written), mib(*disk_size))?;
            let known =
                [("MAC address", &machine.mac), ("serial number", &machine.serial), ("tag", &machine.asset_tag)];
            for (what, value) in known {
                value.iter().try_for_each(|value| writeln!(f, "  {what} {value}"))?;
            }
        }
        writeln!(f)?;
        for (path, len) in &self.files {
            let secret = path.strip_prefix(FOLDER).is_some_and(|path| is_secret(path.trim_start_matches('/')));
            writeln!(f, "{len:>14}  {path}{}", if secret { "  (secrets)" } else { "" })?;
        }
        writeln!(f, "\nEFI system partition:")?;
        self.esp.iter().try_for_each(|(path, len)| writeln!(f, "{len:>14}  {path}"))?;
        for (path, text) in &self.menu {
            writeln!(f, "  {path}:")?;
            text.lines().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        Ok(())
    }
}

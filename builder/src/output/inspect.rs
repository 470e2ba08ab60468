// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looks into a disk image: what it would be on a node. Shows no secrets: of a seed, only the profile and the names of the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::image::fat;
use crate::image::gpt::{self, NO_AUTO, Table};
use crate::image::squashfs::format::MAGIC;
use crate::image::squashfs::read::{NodeKind, Reader};

/// Largest payload.json that is read.
const JSON_MAX: u64 = 4 << 20;

/// What an image holds.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Size of the image file, holes included.
    pub size: u64,
    /// Bytes it takes on this filesystem.
    pub allocated: u64,
    /// The partition table.
    pub table: Table,
    /// What lies in the partitions, by label.
    pub contents: BTreeMap<String, Volume>,
}

/// What lies in a partition.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Volume {
    /// Nothing known.
    Empty,
    /// A FAT volume.
    Fat {
        /// Volume label.
        label: String,
        /// Size of every file by path.
        files: BTreeMap<String, u64>,
        /// Text of configuration files by path.
        texts: BTreeMap<String, String>,
        /// What the seed says, if it is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        seed: Option<Seed>,
    },
    /// A squashfs.
    Squashfs(Box<Squashfs>),
    /// Something that should be there and is damaged.
    Damaged {
        /// Why it could not be read.
        reason: String,
    },
}

/// A squashfs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Squashfs {
    /// Bytes used in the partition.
    pub bytes: u64,
    /// Size of a data block.
    pub block_size: u32,
    /// Time of the image, seconds since 1970.
    pub mtime: u32,
    /// Inodes.
    pub inodes: u32,
    /// Names of regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub specials: u64,
    /// Bytes of all regular files.
    pub file_bytes: u64,
    /// Paths with a file capability.
    pub capabilities: Vec<String>,
    /// `payload.json`, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
}

/// What a seed says.
#[derive(Debug, Clone, Serialize)]
pub struct Seed {
    /// `meta-data`.
    pub meta_data: Value,
    /// Top-level keys of `user-data`.
    pub user_data_keys: Vec<String>,
    /// The node profile.
    pub profile: Value,
    /// Paths of the secrets; never their content.
    pub secret_paths: Vec<String>,
}

/// Looks into the image at `path`.
///
/// # Errors
/// No disk image of ours, or failing I/O. A damaged partition is not an error, but reported as such.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let meta = file.metadata().with_context(|| format!("looking at {}", path.display()))?;
    let table = gpt::read(&mut file).with_context(|| format!("reading {}", path.display()))?;
    let mut contents = BTreeMap::new();
    for partition in &table.partitions {
        let volume = match partition.label.as_str() {
            "ESP" | "CIDATA" => look_at_fat(&file, partition),
            _ => look_at_squashfs(&file, partition),
        };
        let volume = volume.unwrap_or_else(|e| Volume::Damaged { reason: format!("{e:#}") });
        contents.insert(partition.label.clone(), volume);
    }
    // st_blocks counts 512 bytes whatever the filesystem's block (stat(2)).
    let allocated = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
    Ok(Inspection { size: meta.len(), allocated, table, contents })
}

fn look_at_fat(file: &File, partition: &gpt::Partition) -> Result<Volume> {
    let is_seed = partition.label == "CIDATA";
    let want = |path: &str| is_seed || path.ends_with(".conf");
    let found = fat::read(file, partition.offset, partition.len, want)?;
    let mut texts = BTreeMap::new();
    let mut seed = None;
    if is_seed {
        seed = Some(look_at_seed(&found.bytes)?);
        texts.extend(found.bytes.get_key_value("network-config").map(text));
    } else {
        texts.extend(found.bytes.iter().map(text));
    }
    Ok(Volume::Fat { label: found.label, files: found.files, texts, seed })
}

fn text((path, bytes): (&String, &Vec<u8>)) -> (String, String) {
    (path.clone(), String::from_utf8_lossy(bytes).into_owned())
}

fn look_at_seed(files: &BTreeMap<String, Vec<u8>>) -> Result<Seed> {
    let yaml = |name: &str| -> Result<Value> {
        let bytes = files.get(name).with_context(|| format!("the seed has no {name}"))?;
        let text = std::str::from_utf8(bytes).with_context(|| format!("{name} is not UTF-8"))?;
        // The parser's message may quote what it could not read, and that may be a secret.
        serde_saphyr::from_str(text).map_err(|_| anyhow::anyhow!("{name} is not valid YAML"))
    };
    let (meta_data, user_data) = (yaml("meta-data")?, yaml("user-data")?);
    let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
    let ours = user_data.get("imgbuild").unwrap_or(&Value::Null);
    Ok(Seed {
        meta_data,
        user_data_keys: keys(&user_data),
        profile: ours.get("profile").cloned().unwrap_or_default(),
        secret_paths: ours.get("secrets").map(keys).unwrap_or_default(),
    })
}

fn look_at_squashfs(file: &File, partition: &gpt::Partition) -> Result<Volume> {
    let mut magic = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut magic, partition.offset).context("reading a partition")?;
    if u32::from_le_bytes(magic) != MAGIC {
        return Ok(Volume::Empty);
    }
    let mut reader = Reader::open(std::io::BufReader::new(file), partition.offset)?;
    let block = reader.superblock.clone();
    let mut out = Squashfs {
        bytes: block.bytes_used,
        block_size: block.block_size,
        mtime: block.mtime,
        inodes: block.inodes,
        ..Squashfs::default()
    };
    let mut json = None;
    reader.walk(&mut |reader, path, node| {
        match &node.kind {
            NodeKind::Dir => out.directories += 1,
            NodeKind::Symlink(_) => out.symlinks += 1,
            NodeKind::File(data) => {
                out.files += 1;
                out.file_bytes = out.file_bytes.saturating_add(data.len);
                if path == "payload.json" {
                    json = Some(reader.read(data, JSON_MAX).context("reading payload.json")?);
                }
            }
            _ => out.specials += 1,
        }
        if node.xattrs.contains_key("security.capability") {
            out.capabilities.push(path.to_owned());
        }
        Ok(())
    })?;
    out.payload = json.map(|bytes| serde_json::from_slice(&bytes)).transpose().context("parsing payload.json")?;
    Ok(Volume::Squashfs(Box::new(out)))
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "disk {}: {}, {} of it in use", self.table.disk, mib(self.size), mib(self.allocated))?;
        for partition in &self.table.partitions {
            let auto = if partition.attributes & NO_AUTO == 0 { "" } else { ", no-auto" };
            writeln!(f, "\n{}: {} at {}{auto}", partition.label, mib(partition.len), mib(partition.offset))?;
            writeln!(f, "  type {}\n  guid {}", partition.kind, partition.guid)?;
            if let Some(volume) = self.contents.get(&partition.label) {
                volume.fmt(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => writeln!(f, "  empty"),
            Self::Damaged { reason } => writeln!(f, "  DAMAGED: {reason}"),
            Self::Squashfs(squashfs) => squashfs.fmt(f),
            Self::Fat { label, files, texts, seed } => {
                writeln!(f, "  FAT, label {label}")?;
                for (path, len) in files {
                    writeln!(f, "  {len:>12}  {path}")?;
                }
                for (path, text) in texts {
                    writeln!(f, "  {path}:")?;
                    text.lines().try_for_each(|line| writeln!(f, "    {line}"))?;
                }
                seed.iter().try_for_each(|seed| seed.fmt(f))
            }
        }
    }
}

impl fmt::Display for Squashfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  squashfs: {}, blocks of {} KiB, time {}", mib(self.bytes), self.block_size >> 10, self.mtime)?;
        let Self { inodes, files, directories, symlinks, specials, .. } = self;
        writeln!(
            f,
            "  {inodes} inodes: {files} files ({}), {directories} directories, {symlinks} symbolic links, {specials} others",
            mib(self.file_bytes)
        )?;
        self.capabilities.iter().try_for_each(|path| writeln!(f, "  capability: {path}"))?;
        match &self.payload {
            Some(payload) => writeln!(f, "  payload.json: {payload}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  meta-data: {}", self.meta_data)?;
        writeln!(f, "  user-data has {}", self.user_data_keys.join(", "))?;
        writeln!(f, "  profile: {}", self.profile)?;
        self.secret_paths.iter().try_for_each(|path| writeln!(f, "  secret (hidden): {path}"))
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The disk image of one node (docs/contracts.md, section 4): a GPT, and in it the EFI system partition, root and payload with a
//! second slot each, the seed, and room for data. Sparse; the same bytes for the same plan, wherever and however it is made.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
use serde::Serialize;
use uuid::Uuid;

use super::place::{Placed, folder};
use crate::error::Failure;
use crate::image::fat::{self, Variant};
use crate::image::gpt::{self, ALIGN, BACKUP_SECTORS, NO_AUTO, Partition, SECTOR, Table, derive_guid, types};
use crate::store::transfer::free_space;
use crate::store::{Digest, Store};
use crate::tree::FileTree;

pub(super) const MIB: u64 = 1 << 20;
/// Size of the seed's partition: certificates and profile are some 100 KiB.
const SEED_SIZE: u64 = 16 * MIB;
/// Least room for data in the image; the partition grows to the end of the disk on first boot.
const DATA_MIN: u64 = 64 * MIB;
/// Free space beyond the contents that a build wants to see: partition tables, FATs, and the filesystem's own blocks.
pub(super) const SLACK: u64 = 16 * MIB;

/// Sizes in bytes, multiples of 1 MiB: the `[disk]` section of the cluster file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The whole image: `size`.
    pub disk: u64,
    /// EFI system partition: `esp_size`.
    pub esp: u64,
    /// Each root partition: `root_size`.
    pub root: u64,
    /// Each payload partition: `payload_size`.
    pub payload: u64,
}

/// What a disk is made of.
#[derive(Debug, Clone)]
pub struct DiskPlan {
    /// Cluster id; with the node's name the seed of every GUID.
    pub cluster_id: String,
    /// The node's name.
    pub node: String,
    /// CPU architecture: decides the type of the root partitions.
    pub architecture: Architecture,
    /// Sizes.
    pub sizes: Sizes,
    /// Files of the EFI system partition; see [`esp_tree`](super::esp::esp_tree).
    pub esp: FileTree,
    /// The root squashfs, in the store.
    pub root: Digest,
    /// The payload squashfs, in the store.
    pub payload: Digest,
    /// `meta-data`, `user-data`, `network-config`. Holds the node's secrets.
    pub seed: FileTree,
}

/// A disk image that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size, holes included.
    pub size: u64,
    /// Its partition table.
    pub table: Table,
}

/// The GUID of a node's disk: the kernel command line names it.
pub fn disk_guid(cluster_id: &str, node: &str) -> Uuid {
    derive_guid(cluster_id, node, "disk")
}

/// The type of a root partition.
fn root_type(architecture: Architecture) -> Uuid {
    match architecture {
        Architecture::Amd64 => types::ROOT_X86_64,
        Architecture::Loong64 => types::ROOT_LOONGARCH64,
    }
}

/// The partition table of a plan.
///
/// # Errors
/// Sizes that are not multiples of 1 MiB or do not fit on the disk.
pub fn layout(plan: &DiskPlan) -> Result<Table> {
    let Sizes { disk, esp, root, payload } = plan.sizes;
    for (key, size) in [("size", disk), ("esp_size", esp), ("root_size", root), ("payload_size", payload)] {
        if size == 0 || size % ALIGN != 0 {
            let message = format!("`[disk] {key}` is {size} bytes, not a whole number of MiB");
            return Err(Failure::user(message).hint(format!("write it like {key} = \"512MiB\"")).into());
        }
    }
    // The first MiB is the table's; at the end the backup takes less than one, and data ends on a MiB too.
    let fixed = [esp, root, root, payload, payload, SEED_SIZE];
    let before_data = fixed.iter().try_fold(ALIGN, |sum, size| sum.checked_add(*size)).context("a disk beyond 2^64")?;
    let end = (disk.saturating_sub(BACKUP_SECTORS * SECTOR)) / ALIGN * ALIGN;
    let data = end.saturating_sub(before_data);
    if data < DATA_MIN {
        let least = (before_data + DATA_MIN + ALIGN).div_ceil(MIB);
        let message = format!("the partitions do not fit on a disk of {}", mib(disk));
        return Err(Failure::user(message).hint(format!("set `[disk] size` to at least \"{least}MiB\"")).into());
    }
    let root_type = root_type(plan.architecture);
    let mut offset = ALIGN;
    let mut partitions = Vec::new();
    for (label, kind, len, attributes) in [
        ("ESP", types::ESP, esp, 0),
        ("root-a", root_type, root, NO_AUTO),
        ("root-b", root_type, root, NO_AUTO),
        ("payload-a", types::LINUX, payload, NO_AUTO),
        ("payload-b", types::LINUX, payload, NO_AUTO),
        ("CIDATA", types::BASIC_DATA, SEED_SIZE, 0),
        ("data", types::LINUX, data, NO_AUTO),
    ] {
        let guid = derive_guid(&plan.cluster_id, &plan.node, label);
        partitions.push(Partition { label: label.to_owned(), kind, guid, offset, len, attributes });
        offset += len;
    }
    Ok(Table { disk: disk_guid(&plan.cluster_id, &plan.node), partitions })
}

/// Writes the image of `plan` to `path`. Nothing is written before everything is known to fit, and nothing is left behind when
/// something fails or the build is interrupted.
///
/// # Errors
/// Contents larger than their partition (the message names the setting and the number), too little free space, or failing I/O.
pub fn write(plan: &DiskPlan, store: &Store, path: &Path) -> Result<Disk> {
    let checked = Checked::new(plan, store)?;
    let Checked { root, payload, volumes, .. } = &checked;
    check_space(path, root.len + payload.len + volumes.bytes + SLACK)?;
    let placed = Placed::new(path)?;
    checked.frame(store, placed.file()).with_context(|| format!("writing {}", path.display()))?;
    let Checked { root, payload, table, .. } = checked;
    root.copy(placed.file())?;
    payload.copy(placed.file())?;
    placed.finish()?;
    Ok(Disk { path: path.to_owned(), size: plan.sizes.disk, table })
}

/// A plan whose contents are known to fit.
pub(super) struct Checked<'a> {
    plan: &'a DiskPlan,
    pub(super) table: Table,
    volumes: Volumes,
    pub(super) root: Image,
    pub(super) payload: Image,
}

impl<'a> Checked<'a> {
    /// Checks a plan, its images included: they are in the store, and are what their names say.
    ///
    /// # Errors
    /// As [`write`], but for space.
    pub(super) fn new(plan: &'a DiskPlan, store: &Store) -> Result<Self> {
        let table = layout(plan)?;
        let volumes = Volumes::check(plan, &table)?;
        let (root, payload) = open_images(plan, store, &table)?;
        Ok(Self { plan, table, volumes, root, payload })
    }

    /// Writes everything but root and payload to an empty file: the partition table, the EFI system partition and the seed.
    pub(super) fn frame(&self, store: &Store, mut file: &File) -> Result<()> {
        let Self { plan, table, volumes, .. } = self;
        file.set_len(plan.sizes.disk).map_err(|e| Failure::io("making the disk's file", e))?;
        gpt::write(&mut file, table)?;
        fat::write(&plan.esp, store, &volumes.esp, file).context("writing the EFI system partition")?;
        fat::write(&plan.seed, store, &volumes.seed, file).context("writing the seed partition")
    }
}

/// Opens both images at a time: the store hashes what this process has not read yet.
fn open_images(plan: &DiskPlan, store: &Store, table: &Table) -> Result<(Image, Image)> {
    let (root_at, payload_at) = (find(table, "root-a")?, find(table, "payload-a")?);
    std::thread::scope(|scope| {
        let payload = scope.spawn(|| Image::open(store, plan.payload, payload_at, "payload", "payload_size"));
        let root = Image::open(store, plan.root, root_at, "root", "root_size");
        let payload = payload.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((root?, payload?))
    })
}

fn find<'a>(table: &'a Table, label: &str) -> Result<&'a Partition> {
    table.partitions.iter().find(|partition| partition.label == label).context("a partition of the layout")
}

/// Bytes as people write them in the cluster file.
pub(super) fn mib(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(MIB))
}

/// The two FAT volumes, known to hold their files.
struct Volumes {
    esp: fat::Options,
    seed: fat::Options,
    bytes: u64,
}

impl Volumes {
    fn check(plan: &DiskPlan, table: &Table) -> Result<Self> {
        let options = |label: &str, variant| -> Result<fat::Options> {
            let partition = find(table, label)?;
            // Of a random GUID, the first 32 bits are as good as any.
            let serial = u32::from_be_bytes([0, 1, 2, 3].map(|i| partition.guid.as_bytes()[i]));
            Ok(fat::Options { variant, label: label.to_owned(), serial, offset: partition.offset, size: partition.len })
        };
        let (esp, seed) = (options("ESP", Variant::Fat32)?, options("CIDATA", Variant::Fat16)?);
        let cluster = esp.cluster_size().map_err(|_| {
            Failure::user(format!("`[disk] esp_size` is {}: FAT32 is at least 34 MiB", mib(esp.size)))
                .hint("set `[disk] esp_size` to \"256MiB\"")
        })?;
        let (need, have) = (fat::needed(&plan.esp, cluster), fat::capacity(&esp)?);
        if need > have {
            // The tables of a larger volume are larger too: 1 % is enough for clusters of 512 bytes.
            let least = mib(need + (esp.size - have) + need / 100);
            let message =
                format!("the EFI system partition needs {} and `[disk] esp_size` is {}", least, mib(esp.size));
            return Err(Failure::user(message).hint(format!("set `[disk] esp_size` to at least \"{least}\"")).into());
        }
        let need_seed = fat::needed(&plan.seed, seed.cluster_size()?);
        if need_seed > fat::capacity(&seed)? {
            bail!("the seed of {} needs {}, and its partition has {}", plan.node, mib(need_seed), mib(seed.size));
        }
        Ok(Self { esp, seed, bytes: need + need_seed })
    }
}

/// A squashfs of the store that goes into a partition.
pub(super) struct Image {
    file: File,
    pub(super) digest: Digest,
    /// Its length, and where on the disk it begins, in bytes.
    pub(super) len: u64,
    pub(super) at: u64,
}

impl Image {
    fn open(store: &Store, digest: Digest, partition: &Partition, what: &str, key: &str) -> Result<Self> {
        let file = store.open_object(&digest)?;
        let len = file.metadata().with_context(|| format!("measuring the {what} image"))?.len();
        if len > partition.len {
            let (need, have) = (mib(len), mib(partition.len));
            let message = format!("the {what} image has {need} and `[disk] {key}` is {have}");
            return Err(Failure::user(message).hint(format!("set `[disk] {key}` to at least \"{need}\"")).into());
        }
        Ok(Self { file, digest, len, at: partition.offset })
    }
    /// Copies it: on Linux by `copy_file_range`, which shares the blocks where the filesystem can.
    fn copy(self, mut out: &File) -> Result<()> {
        let Self { file, digest, len, at } = self;
        out.seek(SeekFrom::Start(at)).with_context(|| format!("seeking to {at}"))?;
        let copied = std::io::copy(&mut file.take(len), &mut out)
            .map_err(|e| Failure::io(format!("copying store object {digest} into the image"), e))?;
        if copied != len {
            bail!("store object {digest} has {copied} bytes, expected {len}");
        }
        Ok(())
    }
}

/// Refuses to begin what cannot end. The folder need not be there yet: its nearest parent is measured.
pub(super) fn check_space(path: &Path, content: u64) -> Result<()> {
    let folder = folder(path).ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let free = free_space(folder)?;
    if free < content {
        let message =
            format!("{} has {} of free space, and the output needs {}", folder.display(), mib(free), mib(content));
        return Err(Failure::environment(message).hint("free some space, or name another folder with --out").into());
    }
    Ok(())
}

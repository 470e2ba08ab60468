// SPDX-License-Identifier: MIT OR Apache-2.0

//! The installation image: a medium (see `medium`) that UEFI machines boot from, as a CD, a USB stick or virtual media. Its
//! own EFI system partition has the installer's kernel and a menu; everything else is data of the ISO 9660 filesystem.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use profiles::medium::{FOLDER, INDEX};
use serde::Serialize;

use super::disk::{MIB, SLACK, check_space};
use super::esp::{Menu, MenuEntry, kernel_options};
use super::medium::{self, BuiltMedium, MediumPlan, Source};
use super::place::Placed;
use crate::image::fat::{self, Variant};
use crate::image::iso9660::{self, Image};
use crate::store::{Digest, Store};
use crate::tree::{Content, FileTree};

/// Volume label of the ISO 9660 filesystem.
pub const LABEL: &str = "IMGBUILD";
/// That of the FAT volume that is booted.
const ESP_LABEL: &str = "IMGBOOT";
/// Seconds the menu is shown: on a console far away, longer than a disk's.
const MENU_SECONDS: u32 = 10;
/// Where kernel and initramfs lie on the EFI system partition.
const BOOT_FOLDER: &str = "imgbuild";
/// The smallest volume that is FAT32 with clusters of 512 bytes and some to spare, in MiB.
const ESP_MIN: u64 = 36;
/// Largest that is tried: FAT holds no file of 4 GiB.
const ESP_MAX: u64 = 8 << 10;

/// What an installation image is made of.
#[derive(Debug, Clone)]
pub struct IsoPlan {
    /// The nodes.
    pub medium: MediumPlan,
    /// systemd-boot.
    pub boot_loader: Content,
    /// The kernel, an EFI program.
    pub kernel: Content,
    /// The installer's initramfs.
    pub initramfs: Content,
    /// Version of the image, shown in the menu where titles are alike.
    pub version: String,
    /// Further kernel arguments, from the cluster file.
    pub kernel_args: Vec<String>,
    /// Time of every file, seconds since 1970.
    pub time: u32,
}

/// An installation image that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Iso {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub size: u64,
}

/// Writes the image of `plan` to `path`, readable by its owner alone: it holds secrets. Nothing is left behind when something
/// fails or the build is interrupted. The same plan gives the same bytes.
///
/// # Errors
/// Contents that do not fit onto a node's disk (the message names the setting and the number), too little free space, or
/// failing I/O.
pub fn write(plan: &IsoPlan, store: &Store, path: &Path) -> Result<Iso> {
    let medium = medium::build(&plan.medium, store)?;
    let esp = esp(&esp_tree(plan, &medium)?, store, &medium)?;
    let options = iso9660::Options { label: LABEL.to_owned(), time: plan.time, seed: seed(&medium.digest()) };
    let image = Image::new(&files(&medium, store)?, &iso9660::Source::File(&esp), &options)?;
    check_space(path, image.size() + SLACK)?;
    let placed = Placed::new(path)?;
    image.write(placed.file()).with_context(|| format!("writing {}", path.display()))?;
    placed.finish()?;
    Ok(Iso { path: path.to_owned(), size: image.size() })
}

/// Of a digest, the first 64 bits are as good as any.
fn seed(digest: &Digest) -> u64 {
    digest.as_bytes().iter().take(8).fold(0, |seed, byte| (seed << 8) | u64::from(*byte))
}

/// The files of the ISO's EFI system partition. Its entries count no boots: a medium may be read-only.
fn esp_tree(plan: &IsoPlan, medium: &BuiltMedium) -> Result<FileTree> {
    let digest = medium.digest();
    let cluster = &plan.medium.cluster;
    let entry = |place: usize, name: &str, title: String, what: &str| -> Result<MenuEntry> {
        Ok(MenuEntry {
            name: format!("imgbuild-{name}"),
            sort_key: format!("imgbuild-{place:04}"),
            title,
            options: kernel_options(&format!("imgbuild.medium={digest} imgbuild.{what}"), &plan.kernel_args)?,
        })
    };
    let automatic = format!("{cluster}: install the node that this machine is (automatic)");
    let mut entries = vec![entry(0, "auto", automatic, "install=auto")?];
    for (node, place) in medium.index.nodes.iter().zip(1..) {
        let (name, title) = (&node.name, format!("{cluster}: install {}", node.name));
        entries.push(entry(place, &format!("install-{name}"), title, &format!("install={name}"))?);
    }
    entries.push(entry(entries.len(), "rescue", format!("{cluster}: rescue"), "rescue")?);
    Menu {
        architecture: plan.medium.architecture,
        boot_loader: &plan.boot_loader,
        kernel: &plan.kernel,
        initramfs: &plan.initramfs,
        folder: BOOT_FOLDER,
        version: &plan.version,
        seconds: MENU_SECONDS,
        default: "imgbuild-auto.conf",
        entries,
    }
    .tree()
}

/// The EFI system partition, no larger than it must be, as a file without a name.
fn esp(tree: &FileTree, store: &Store, medium: &BuiltMedium) -> Result<File> {
    let serial = (seed(&medium.digest()) >> 32) as u32;
    let sized = |mib: u64| fat::Options {
        variant: Variant::Fat32,
        label: ESP_LABEL.to_owned(),
        serial,
        offset: 0,
        size: mib * MIB,
    };
    for mib in ESP_MIN..=ESP_MAX {
        let options = sized(mib);
        if fat::needed(tree, options.cluster_size()?) <= fat::capacity(&options)? {
            let file = store.nameless()?;
            file.set_len(options.size).context("making the image's EFI system partition")?;
            fat::write(tree, store, &options, &file).context("writing the image's EFI system partition")?;
            return Ok(file);
        }
    }
    bail!("kernel and initramfs do not fit into an EFI system partition of {ESP_MAX} MiB");
}

/// The files of the ISO 9660 filesystem with their permissions.
fn files<'a>(medium: &'a BuiltMedium, store: &Store) -> Result<BTreeMap<String, (u16, iso9660::Source<'a>)>> {
    let mut out = BTreeMap::new();
    out.insert(format!("{FOLDER}/{INDEX}"), (0o444, iso9660::Source::Bytes(&medium.json)));
    for (path, bytes) in &medium.lists {
        out.insert(format!("{FOLDER}/{path}"), (0o444, iso9660::Source::Bytes(bytes)));
    }
    for (path, source) in &medium.files {
        let source = match source {
            Source::Object(digest) => {
                // Checked before it is read by its path.
                store.verify(digest)?;
                iso9660::Source::Path(store.path(digest))
            }
            Source::Nameless(file) => iso9660::Source::File(file),
            Source::Bytes(bytes) => iso9660::Source::Bytes(bytes),
        };
        let mode = if medium::is_secret(path) { 0o400 } else { 0o444 };
        out.insert(format!("{FOLDER}/{path}"), (mode, source));
    }
    Ok(out)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What machines boot from the network: the folder that a server hands out over HTTP or TFTP. The installation medium
//! (see `medium`, docs/contracts.md section 11) lies in it as cpio archives, which the boot loader appends to the
//! installer's initramfs; the menus are `pxe_menu`'s.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use profiles::medium::{FOLDER, INDEX};
use profiles::signing::SUMS;
use serde::Serialize;

use super::disk::{MIB, SLACK, check_space, mib};
use super::medium::{self, BuiltMedium, MediumPlan, Source};
use super::place_folder::PlacedFolder;
use super::pxe_menu::{Entry as MenuEntry, Menus};
use super::sums;
use crate::error::Failure;
use crate::image::cpio;
use crate::store::{Digest, Store};
use crate::tree::{Content, Entry, FileTree, Kind};

/// Kernel, by its name in the folder.
pub(super) const KERNEL: &str = "vmlinuz";
/// The installer's initramfs.
pub(super) const INITRAMFS: &str = "initramfs.cpio.zst";
/// Blocks that only an installation needs.
const BLOCKS: &str = "blocks.cpio";
/// Files in a cpio archive have less than 4 GiB: newc has eight hexadecimal digits for a length.
const FILE_MAX: u64 = u32::MAX as u64;
/// Memory that a machine needs beside what it loads and unpacks: kernel and its tables, what firmware keeps for itself,
/// firstboot.
const BASE: u64 = 256 * MIB;

/// What the folder is made of.
#[derive(Debug, Clone)]
pub struct PxePlan {
    /// The nodes.
    pub medium: MediumPlan,
    /// The kernel, an EFI program.
    pub kernel: Content,
    /// The installer's initramfs.
    pub initramfs: Content,
    /// Further kernel arguments, from the cluster file.
    pub kernel_args: Vec<String>,
    /// Time of every file, seconds since 1970.
    pub time: u32,
}

/// A folder that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pxe {
    /// Where it lies.
    pub path: PathBuf,
    /// Size of all its files.
    pub size: u64,
    /// What each node needs, by name.
    pub memory: BTreeMap<String, Memory>,
}

/// Memory that a machine needs to boot from the network, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// To be installed.
    pub install: u64,
    /// To run from memory alone, if it may; what its work needs comes on top.
    pub diskless: Option<u64>,
}

impl Memory {
    /// What a machine needs that loads `loaded` bytes which become `unpacked` bytes of files.
    ///
    /// Firmware loads the archives and hands them to the kernel, which unpacks them into the root filesystem and frees
    /// them only when all are unpacked (`populate_rootfs` in `init/initramfs.c` of Linux): both are there at a time.
    /// Before that, the kernel's EFI stub copies what the boot loader has loaded: it is there twice. And the root
    /// filesystem is a tmpfs, which takes at most half of the memory (`init_rootfs` in `init/do_mounts.c`, tmpfs(5)).
    fn of(loaded: u64, unpacked: u64) -> u64 {
        (loaded + unpacked).max(2 * loaded).max(2 * unpacked) + BASE
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to install", mib(self.install))?;
        self.diskless.map_or(Ok(()), |diskless| write!(f, ", {} and its work to run diskless", mib(diskless)))
    }
}

/// Writes the folder of `plan` to `path`, readable by its owner alone: it holds secrets. It appears whole, in place of
/// one that was there. The same plan gives the same bytes.
///
/// # Errors
/// Contents that do not fit onto a node's disk or into an archive, kernel arguments that no menu can hold, too little
/// free space, failing I/O.
pub fn write(plan: &PxePlan, store: &Store, path: &Path) -> Result<Pxe> {
    let medium = medium::build(&plan.medium, store)?;
    fits(&medium)?;
    let archives = archives(&medium, store)?;
    let nodes = nodes(plan, &medium, &archives)?;
    let memory = memory(plan, &nodes, &archives, store)?;
    let digest = medium.digest().to_string();
    let menus = Menus::new(&plan.medium.cluster, &digest, &plan.kernel_args, &nodes)?;
    let content: u64 = archives.values().map(files_size).sum();
    check_space(path, content + plan.kernel.len() + plan.initramfs.len() + SLACK)?;

    let folder = PlacedFolder::new(path)?;
    let mut out = Out { folder: &folder, sums: BTreeMap::new(), size: 0 };
    out.file(KERNEL, |file| copy(&plan.kernel, store, file))?;
    out.file(INITRAMFS, |file| {
        copy(&plan.initramfs, store, file)?;
        // The kernel finds the next archive at a multiple of four bytes, after zeros (`unpack_to_rootfs`).
        let rest = plan.initramfs.len().next_multiple_of(4) - plan.initramfs.len();
        file.write_all(&[0; 3][..rest as usize]).context("writing the initramfs")
    })?;
    for (name, tree) in &archives {
        out.file(name, |file| cpio::write(tree, store, plan.time, file))?;
    }
    for (name, text) in menus.files()? {
        out.file(&name, |file| file.write_all(text.as_bytes()).context("writing a menu"))?;
    }
    let readme = readme(plan, &medium, &memory);
    out.file("README.txt", |file| file.write_all(readme.as_bytes()).context("writing the readme"))?;
    let sums = sums::text(&out.sums);
    let mut size = out.size + sums.len() as u64;
    folder.write(SUMS, sums.as_bytes(), 0o600)?;
    let signature = sums::signature_of(SUMS);
    if let Some(signer) = &plan.medium.signer {
        let text = sums::sign(signer, &plan.medium.cluster, SUMS, &sums);
        folder.write(&signature, text.as_bytes(), 0o600)?;
        size += text.len() as u64;
    }
    // A cluster that has no etcd members of their own any more has fewer archives.
    folder.finish(&[BLOCKS, "mac", "medium-etcd.cpio", "medium-pods.cpio", &signature])?;
    Ok(Pxe { path: path.to_owned(), size, memory })
}

/// Refuses what no archive can hold.
fn fits(medium: &BuiltMedium) -> Result<()> {
    let large = medium.index.files.iter().filter(|(_, file)| file.size > FILE_MAX);
    let large: Vec<String> = large.map(|(path, file)| format!("{path} ({})", mib(file.size))).collect();
    if large.is_empty() {
        return Ok(());
    }
    let message = format!("too large to be loaded over a network: {}", large.join(", "));
    let hint =
        "a file in an initramfs has less than 4096MiB: use `--output iso` or `--output disk`, or carry fewer images";
    Err(Failure::user(message).hint(hint).into())
}

/// The archives, by file name. Each kind of node has one with the index, its root and its payload; each node has its
/// own.
fn archives(medium: &BuiltMedium, store: &Store) -> Result<BTreeMap<String, FileTree>> {
    let mut archives: BTreeMap<String, FileTree> = BTreeMap::new();
    let mut put = |archive: String, path: &str| -> Result<()> {
        let tree = archives.entry(archive).or_default();
        let target = format!("{FOLDER}/{path}");
        let mode = if medium::is_secret(path) { 0o400 } else { 0o444 };
        if let Some(bytes) = if path == INDEX { Some(&medium.json) } else { medium.lists.get(path) } {
            return tree.insert(&target, Entry::file(bytes.as_slice(), mode));
        }
        let source = medium.files.get(path).with_context(|| format!("the medium has no {path}"))?;
        tree.insert(&target, Entry::new(Kind::File(content(source, path, store)?), mode))
    };
    for node in &medium.index.nodes {
        let archive = medium_archive(&node.payload);
        let lists = medium.lists.keys().map(String::as_str);
        for path in [INDEX, &node.root, &node.payload].into_iter().chain(lists) {
            put(archive.clone(), path)?;
        }
        let own = format!("nodes/{}", node.name);
        for path in medium.files.keys() {
            let is_own = path.strip_prefix(&own).is_some_and(|rest| rest == ".bin" || rest.starts_with('/'));
            if is_own {
                put(format!("{own}.cpio"), path)?;
            }
        }
        let others = node.pieces.iter().map(|piece| &piece.file);
        for path in others.filter(|path| !path.starts_with("nodes/") && **path != node.root && **path != node.payload) {
            put(BLOCKS.to_owned(), path)?;
        }
    }
    Ok(archives)
}

/// The archive with a payload, by the payload's own name.
fn medium_archive(payload: &str) -> String {
    let kind = payload.trim_start_matches("payload-").trim_end_matches(".squashfs");
    format!("medium-{kind}.cpio")
}

/// A file of a medium for an archive. What has no name becomes an object of the store, unless it holds secrets: then
/// it is small, and stays in memory.
fn content(source: &Source, path: &str, store: &Store) -> Result<Content> {
    let of = |object: &Digest| -> Result<Content> {
        let len = store.size(object).with_context(|| format!("store object {object} is gone"))?;
        Ok(Content::Slice { object: *object, offset: 0, len })
    };
    match source {
        Source::Object(object) => of(object),
        Source::Bytes(bytes) => Ok(Content::Bytes(bytes.as_slice().into())),
        Source::Nameless(file) => {
            let reading = || format!("reading {path} of the medium");
            let len = file.metadata().with_context(reading)?.len();
            let mut reader = BufReaderAt { file, at: 0 };
            if medium::is_secret(path) {
                let mut bytes = Vec::with_capacity(usize::try_from(len).with_context(reading)?);
                reader.read_to_end(&mut bytes).with_context(reading)?;
                return Ok(Content::Bytes(bytes.into()));
            }
            of(&store.put_reader(reader, None)?.0)
        }
    }
}

/// Reads a file from its beginning, wherever its position is.
struct BufReaderAt<'a> {
    file: &'a File,
    at: u64,
}

impl Read for BufReaderAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// What the menus say of each node.
fn nodes(plan: &PxePlan, medium: &BuiltMedium, archives: &BTreeMap<String, FileTree>) -> Result<Vec<MenuEntry>> {
    let mut nodes = Vec::new();
    for (node, planned) in medium.index.nodes.iter().zip(&plan.medium.nodes) {
        let own = format!("nodes/{}.cpio", node.name);
        let shared = medium_archive(&node.payload);
        for name in [&own, &shared] {
            if !archives.contains_key(name) {
                bail!("there is no archive {name}");
            }
        }
        let blocks = archives.contains_key(BLOCKS).then(|| BLOCKS.to_owned());
        nodes.push(MenuEntry {
            name: node.name.clone(),
            mac: planned.machine.mac.clone(),
            install: std::iter::once(shared.clone()).chain(blocks).chain([own.clone()]).collect(),
            diskless: (!planned.etcd_member).then(|| vec![shared, own]),
        });
    }
    Ok(nodes)
}

/// Memory that each node needs.
fn memory(
    plan: &PxePlan,
    nodes: &[MenuEntry],
    archives: &BTreeMap<String, FileTree>,
    store: &Store,
) -> Result<BTreeMap<String, Memory>> {
    let mut unpacked = Counting(0);
    zstd::stream::copy_decode(plan.initramfs.reader(store)?, &mut unpacked).context("measuring the initramfs")?;
    let needs = |names: &[String]| {
        let sizes = names.iter().filter_map(|name| archives.get(name)).map(files_size);
        let archives: u64 = sizes.sum();
        Memory::of(plan.kernel.len() + plan.initramfs.len() + archives, unpacked.0 + archives)
    };
    let of = |node: &MenuEntry| {
        let diskless = node.diskless.as_deref().map(needs);
        (node.name.clone(), Memory { install: needs(&node.install), diskless })
    };
    Ok(nodes.iter().map(of).collect())
}

/// Bytes of all files, in whole pages of memory.
fn files_size(tree: &FileTree) -> u64 {
    let files = tree.iter().filter_map(|(_, entry)| match &entry.kind {
        Kind::File(content) => Some(content.len().next_multiple_of(4096)),
        _ => None,
    });
    files.sum()
}

struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The folder under way, and what is known of its files.
struct Out<'a> {
    folder: &'a PlacedFolder,
    sums: BTreeMap<String, Digest>,
    size: u64,
}

impl Out<'_> {
    fn file(&mut self, name: &str, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
        let doing = || format!("writing {name}");
        let mut writer = BufWriter::with_capacity(1 << 20, self.folder.create(name, 0o600)?);
        fill(&mut writer).with_context(doing)?;
        let file = writer.into_inner().map_err(|error| Failure::io(doing(), error.into_error()))?;
        let (digest, size) = Digest::of_reader(&mut BufReaderAt { file: &file, at: 0 }).with_context(doing)?;
        self.sums.insert(name.to_owned(), digest);
        self.size += size;
        Ok(())
    }
}

fn copy(content: &Content, store: &Store, out: &mut impl Write) -> Result<()> {
    let copied = io::copy(&mut content.reader(store)?, out).context("copying")?;
    if copied != content.len() {
        bail!("copied {copied} bytes of {}", content.len());
    }
    Ok(())
}

/// What somebody with this folder in the room must know.
fn readme(plan: &PxePlan, medium: &BuiltMedium, memory: &BTreeMap<String, Memory>) -> String {
    let mut text = format!(
        "The machines of cluster {} boot from the network with this folder.\n\n\
         It holds private keys. Serve it on a network of its own, as root:\n\n    \
         imgbuild serve . --interface IF --boot-file ipxe.efi\n\n\
         That is HTTP, TFTP and proxyDHCP; something else gives the machines addresses. Any HTTP server does for iPXE, whose\n\
         menu is boot.ipxe; GRUB's is grub.cfg. A machine whose MAC address the cluster file names is installed\n\
         after a few seconds. Installing does nothing to a disk that is installed: it boots it. \"diskless\" writes to\n\
         no disk, and forgets everything when it is switched off; a member of etcd cannot run so.\n\n\
         Memory that a machine needs:\n\n",
        plan.medium.cluster
    );
    let width = memory.keys().map(String::len).max().unwrap_or_default();
    for (name, needs) in memory {
        text += &format!("    {name:width$}  {needs}\n");
    }
    text += &format!(
        "\nThe disk of each machine:\n\n{}\nsha256sum -c SHA256SUMS says whether the folder is whole.\n",
        medium
            .index
            .nodes
            .iter()
            .map(|node| format!("    {:width$}  at least {}\n", node.name, mib(node.disk_size)))
            .collect::<String>()
    );
    text
}

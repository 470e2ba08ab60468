//! Packs a folder of this machine into a squashfs, to time the writer beside mksquashfs:
//! `squashfs_folder FOLDER STORE OUT LEVEL BLOCK_KIB JOBS`. Contents go into the store as one object first, as packages would.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use imgbuild::image::squashfs::{self, Options};
use imgbuild::store::{Digest, Store};
use imgbuild::tree::{Content, Entry, FileTree, Kind};

fn collect(
    folder: &Path,
    prefix: &str,
    list: &mut Vec<(String, Entry)>,
    pack: &mut impl Write,
    at: &mut u64,
) -> Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    names.sort_by_key(std::fs::DirEntry::file_name);
    for entry in names {
        let name = entry.file_name().into_string().ok().context("a name that is not UTF-8")?;
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let meta = entry.metadata()?;
        let kind = if meta.is_dir() {
            Kind::Dir
        } else if meta.is_symlink() {
            Kind::Symlink(std::fs::read_link(entry.path())?.to_string_lossy().into_owned())
        } else if meta.is_file() {
            let mut bytes = Vec::new();
            std::fs::File::open(entry.path())?.read_to_end(&mut bytes)?;
            pack.write_all(&bytes)?;
            *at += bytes.len() as u64;
            Kind::File(Content::Slice {
                object: Digest::of(b""),
                offset: *at - bytes.len() as u64,
                len: bytes.len() as u64,
            })
        } else if meta.file_type().is_fifo() {
            Kind::Fifo
        } else {
            continue;
        };
        let is_dir = matches!(kind, Kind::Dir);
        let entry_of = Entry {
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: meta.mtime() as u32,
            ..Entry::new(kind, (meta.mode() & 0o7777) as u16)
        };
        list.push((path.clone(), entry_of));
        if is_dir {
            collect(&entry.path(), &path, list, pack, at)?;
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, folder, store, out, level, block, jobs] = args.as_slice() else { anyhow::bail!("see the source") };
    let store = Store::open(Path::new(store))?;
    let mut list = Vec::new();
    let mut writer = store.writer()?;
    collect(Path::new(folder), "", &mut list, &mut writer, &mut 0)?;
    let (object, size) = writer.commit(None)?;
    let mut tree = FileTree::new();
    for (path, mut entry) in list {
        if let Kind::File(Content::Slice { object: slot, .. }) = &mut entry.kind {
            *slot = object;
        }
        tree.insert(&path, entry)?;
    }
    eprintln!("{} entries, {size} bytes", tree.len());
    let options = Options {
        block_size: block.parse::<u32>()? << 10,
        level: level.parse()?,
        jobs: jobs.parse()?,
        ..Options::new(1_600_000_000)
    };
    let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (start, before) = (Instant::now(), cpu());
    let summary = if out == "-" {
        squashfs::pack(&tree, &store, &options)?.summary
    } else {
        let mut file = std::io::BufWriter::new(std::fs::File::create(out)?);
        squashfs::write(&tree, &store, &options, &mut file)?
    };
    let after = cpu();
    let used = (after.tv_sec - before.tv_sec) as f64 + (after.tv_nsec - before.tv_nsec) as f64 / 1e9;
    eprintln!(
        "{:.2} s, {used:.2} s CPU, ratio {:.4}, {summary:?}",
        start.elapsed().as_secs_f64(),
        summary.bytes as f64 / size as f64
    );
    Ok(())
}

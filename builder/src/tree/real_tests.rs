// SPDX-License-Identifier: MIT OR Apache-2.0

//! Trees of real packages, beside kmod's own tools. Run where `IMGBUILD_TEST_DEBS` names a folder of packages that make
//! a bookworm root (docs/os-layer.md says how to fill it); with `IMGBUILD_TEST_OUT`, the root is also written there as
//! `root.tar`, ready for `sqfstar`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::initramfs::{self, initramfs, kernel_image};
use super::kmod_index::reader::read as read_index;
use super::layers::Package;
use super::os::{Options, Os, assemble};
use super::{Content, Entry, FileTree, Kind};
use crate::inputs::deb::archive::{control, unpack_all};
use crate::proof::elf::{Files, Target, check};
use crate::store::{Digest, Store};

/// Names, objects, and what each replaces.
type Debs = (Vec<String>, Vec<Digest>, Vec<Vec<String>>);

fn debs(store: &Store) -> Option<Debs> {
    let folder = std::env::var_os("IMGBUILD_TEST_DEBS")?;
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let mut out = Debs::default();
    for path in paths {
        let (digest, _) = store.put_reader(File::open(&path).unwrap(), None).unwrap();
        let fields = control(store, &digest).unwrap();
        let words =
            |text: &String| text.split(',').filter_map(|w| Some(w.split_whitespace().next()?.to_owned())).collect();
        out.0.push(fields["Package"].clone());
        out.1.push(digest);
        out.2.push(fields.get("Replaces").map(words).unwrap_or_default());
    }
    Some(out)
}

fn real(store: &Store) -> Option<Os> {
    let (names, digests, replaces) = debs(store)?;
    let start = Instant::now();
    let archives = unpack_all(store, &digests).unwrap();
    eprintln!("unpacked {} packages: {:?}", names.len(), start.elapsed());
    let packages: Vec<Package<'_>> = names
        .iter()
        .zip(&archives)
        .zip(&replaces)
        .map(|((name, archive), replaces)| Package { name, archive, replaces })
        .collect();
    let mut extra = FileTree::new();
    if let Some(folder) = std::env::var_os("IMGBUILD_TEST_EXTRA") {
        add_folder(&mut extra, Path::new(&folder), "");
    }
    let options = Options { overlays: vec!["common".into(), "debian".into()], extra, alternatives: BTreeMap::new() };
    let mut os: Option<Os> = None;
    for round in ["cold", "warm"] {
        let start = Instant::now();
        let next = assemble(store, &packages, &options).unwrap();
        assert!(os.as_ref().is_none_or(|os| os.tree == next.tree), "the second tree differs from the first");
        os = Some(next);
        eprintln!("assembled, {round}: {:?}", start.elapsed());
    }
    os
}

fn add_folder(tree: &mut FileTree, folder: &Path, below: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            add_folder(tree, &path, &name);
        } else if path.is_symlink() {
            tree.insert(&name, Entry::symlink(fs::read_link(&path).unwrap().to_str().unwrap())).unwrap();
        } else {
            tree.insert(&name, Entry::file(fs::read(&path).unwrap(), 0o755)).unwrap();
        }
    }
}

fn write_tar(store: &Store, tree: &FileTree, to: &Path) {
    let mut tar = tar::Builder::new(File::create(to).unwrap());
    for (path, entry) in tree.iter() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode.into());
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(entry.mtime.min(1_700_000_000).into());
        let name = if path.is_empty() { "./" } else { path };
        match &entry.kind {
            Kind::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, name, &[][..]).unwrap();
            }
            Kind::File(content) => {
                header.set_size(content.len());
                tar.append_data(&mut header, name, content.reader(store).unwrap()).unwrap();
            }
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, name, target).unwrap();
            }
            Kind::HardLink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                tar.append_link(&mut header, name, target).unwrap();
            }
            Kind::CharDevice { .. } => {}
            other => panic!("{path}: {other:?}"),
        }
    }
    tar.finish().unwrap();
}

/// Lines after the colon are sets: any order that loads what is needed first is right.
fn dependency_sets(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let line = |line: &str| {
        let (path, needs) = line.split_once(':').unwrap();
        (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect())
    };
    text.lines().map(line).collect()
}

/// Writes the modules of a tree below `root` and runs depmod over them.
fn run_depmod(store: &Store, os: &Os, root: &Path) {
    let folder = os.modules.folder();
    for (path, entry) in os.tree.below(&folder) {
        let to = root.join(path.strip_prefix("usr/").unwrap());
        let name = path[folder.len() + 1..].to_owned();
        if entry.kind == Kind::Dir {
            fs::create_dir_all(&to).unwrap();
        } else if name.contains('/')
            || ["modules.order", "modules.builtin", "modules.builtin.modinfo"].contains(&&*name)
        {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, os.tree.content(path).unwrap().read(store).unwrap()).unwrap();
        }
    }
    let status = Command::new("depmod").arg("-b").arg(root).arg(&os.modules.version).status().unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "wants a folder of packages in IMGBUILD_TEST_DEBS; tests/tests/oracles.rs has kmod judge the built lab"]
fn a_real_root() {
    let dir = tempfile::tempdir().unwrap();
    let store = match std::env::var_os("IMGBUILD_TEST_STORE") {
        Some(path) => Store::open(Path::new(&path)).unwrap(),
        None => Store::open(dir.path()).unwrap(),
    };
    let os = real(&store).expect("IMGBUILD_TEST_DEBS names a folder of packages");
    let bytes: u64 = os.tree.iter().map(|(_, e)| if let Kind::File(c) = &e.kind { c.len() } else { 0 }).sum();
    eprintln!("{} entries, {} MB, {} modules", os.tree.len(), bytes / 1_000_000, os.modules.modules.len());
    let start = Instant::now();
    let report = check(&store, &os.tree, &Target::of("amd64").unwrap(), &Files::of(&|_| None)).unwrap();
    eprintln!("{report:?}: {:?}", start.elapsed());
    let (version, kernel) = kernel_image(&os.tree).unwrap();
    assert_eq!(version, os.modules.version);
    assert!(kernel.len() > 1_000_000);
    let init = Content::Bytes((*b"x").into());
    let tree = initramfs(&store, &os.tree, &os.modules, init, &initramfs::Options::default()).unwrap();
    let list = tree.text(&store, "lib/modules/modules.list").unwrap().unwrap();
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    for line in list.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), 4, "{line}");
        assert!(fields[1] == "-" || fields[1].split(',').all(|need| seen.contains(need)), "{line}");
        bytes += tree.content(&format!("lib/modules/{}.ko", fields[0])).unwrap().len();
        seen.insert(fields[0]);
    }
    assert!(seen.contains("ext4") && seen.contains("crc32c_generic") && seen.contains("virtio_blk"));
    eprintln!("initramfs: {} modules, {} MB", seen.len(), bytes / 1_000_000);
    if let Some(out) = std::env::var_os("IMGBUILD_TEST_OUT") {
        write_tar(&store, &os.tree, &Path::new(&out).join("root.tar"));
        write_tar(&store, &tree, &Path::new(&out).join("initramfs.tar"));
        let kernel = kernel.read(&store).unwrap();
        fs::write(Path::new(&out).join("vmlinuz"), kernel).unwrap();
    }
    let root = tempfile::tempdir().unwrap();
    run_depmod(&store, &os, root.path());
    for name in ["alias", "alias.bin", "symbols.bin", "softdep", "devname", "builtin.bin", "builtin.alias.bin"] {
        let path = format!("{}/modules.{name}", os.modules.folder());
        let ours = os.tree.content(&path).unwrap().read(&store).unwrap();
        let theirs = fs::read(root.path().join(path.strip_prefix("usr/").unwrap())).unwrap();
        if name.ends_with(".bin") {
            // The shape of kmod's tree depends on the order of insertion; what it says does not.
            assert!(read_index(&ours) == read_index(&theirs), "{path} differs");
        } else {
            assert_eq!(Digest::of(&ours), Digest::of(&theirs), "{path}: {} and {} bytes", ours.len(), theirs.len());
        }
    }
    let path = format!("{}/modules.dep", os.modules.folder());
    let ours = os.tree.text(&store, &path).unwrap().unwrap();
    let theirs = fs::read_to_string(root.path().join(path.strip_prefix("usr/").unwrap())).unwrap();
    assert_eq!(dependency_sets(&ours), dependency_sets(&theirs));
    modprobe_reads_ours(&store, &os, root.path());
}

/// modprobe and modinfo find modules through our index files.
fn modprobe_reads_ours(store: &Store, os: &Os, root: &Path) {
    let folder = os.modules.folder();
    for (path, entry) in os.tree.below(&folder) {
        if let (Kind::File(content), false) = (&entry.kind, path[folder.len() + 1..].contains('/')) {
            fs::write(root.join(path.strip_prefix("usr/").unwrap()), content.read(store).unwrap()).unwrap();
        }
    }
    let ask = |name: &str| {
        let mut command = Command::new("modprobe");
        command.args(["-n", "--show-depends", "-S", &os.modules.version, "-d"]).arg(root).arg(name);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{name}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let ext4 = ask("ext4");
    let place = |name: &str| ext4.find(name).unwrap_or_else(|| panic!("{name} in {ext4}"));
    assert!(place("/jbd2.ko") < place("/ext4.ko") && place("/mbcache.ko") < place("/ext4.ko"), "{ext4}");
    assert!(ask("fs-squashfs").contains("/squashfs.ko"));
    assert!(ask("virtio:d00000002v00001AF4").contains("/virtio_blk.ko"));
    assert!(ask("symbol:jbd2_journal_start").contains("/jbd2.ko"));
    assert!(ask(&os.modules.builtin[0]).starts_with("builtin"), "{}", os.modules.builtin[0]);
}

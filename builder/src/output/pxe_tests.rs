// SPDX-License-Identifier: MIT OR Apache-2.0

//! The PXE folder, as a boot loader and a kernel take it: what is loaded for a node, unpacked by cpio, is a medium with
//! all that the node needs.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use profiles::medium::Medium;

use super::disk::MIB;
use super::medium_tests;
use super::pxe::{PxePlan, write};
use crate::error::{hint, kind};
use crate::image::cpio;
use crate::image::testing::{store, text, tool_ok};
use crate::store::{Digest, Store};
use crate::tree::{Content, Entry, FileTree};

fn initramfs(store: &Store) -> Vec<u8> {
    let mut tree = FileTree::new();
    tree.insert("init", Entry::file(vec![5; 3_000_001], 0o755)).unwrap();
    let mut out = Vec::new();
    cpio::write_zstd(&tree, store, 0, 3, 1, &mut out).unwrap();
    out
}

pub(super) fn plan(store: &Store, nodes: &[(&str, &'static str)]) -> PxePlan {
    let mut medium = medium_tests::plan(store, nodes);
    for (node, last) in medium.nodes.iter_mut().zip(0..) {
        node.machine.mac = (last < 2).then(|| format!("52:54:00:77:00:0{last}"));
    }
    PxePlan {
        medium,
        kernel: Content::Bytes(vec![1; 1_000_000].into()),
        initramfs: Content::Bytes(initramfs(store).into()),
        kernel_args: vec!["quiet".into()],
        time: 1_600_000_000,
    }
}

pub(super) const THREE: [(&str, &str); 3] = [("etcd-1", "etcd"), ("master-1", "pods"), ("worker-1", "pods")];

/// What a node's script loads after the kernel for a variant.
fn loaded(folder: &Path, node: &str, variant: &str) -> Vec<String> {
    let script = std::fs::read_to_string(folder.join(format!("nodes/{node}.ipxe"))).unwrap();
    let part = script.split("\n:").find(|part| part.starts_with(variant)).unwrap();
    let lines = part.lines().filter_map(|line| line.strip_prefix("initrd --name "));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().trim_start_matches("../").to_owned()).collect()
}

/// Joins the files as a boot loader does, and unpacks them as a kernel does.
fn unpack(folder: &Path, files: &[String], target: &Path) {
    std::fs::create_dir_all(target).unwrap();
    for file in files {
        let path = folder.join(file);
        assert_eq!(std::fs::metadata(&path).unwrap().len() % 4, 0, "what comes after {file} is not aligned");
        let script = match file.ends_with(".zst") {
            // zstd does not take the padding, and says so after it has written everything.
            true => "zstd -dc < \"$1\" 2>/dev/null | cpio -idu --quiet -D \"$2\"",
            false => "cpio -idu --quiet -D \"$2\" < \"$1\"",
        };
        tool_ok("sh", "cpio, zstd", &["-ec", script, "sh", text(&path), text(target)]);
    }
}

#[test]
fn what_is_loaded_is_a_medium_with_all_that_the_node_needs() {
    let (dir, store) = store();
    let path = dir.path().join("out/lab-pxe");
    let pxe = write(&plan(&store, &THREE), &store, &path).unwrap();
    tool_ok("sh", "coreutils", &["-ec", "cd \"$1\" && sha256sum --quiet --strict -c SHA256SUMS", "sh", text(&path)]);
    let listed = std::fs::read_to_string(path.join("SHA256SUMS")).unwrap();
    let all = tool_ok("find", "findutils", &[text(&path), "-type", "f"]);
    assert_eq!(listed.lines().count() + 1, all.lines().count(), "a file without a sum");
    let sizes: u64 = all.lines().map(|file| std::fs::metadata(file).unwrap().len()).sum();
    assert_eq!(pxe.size, sizes);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);

    for (node, kind) in THREE {
        let target = dir.path().join(node);
        let files = loaded(&path, node, "install");
        let medium = format!("medium-{kind}.cpio");
        assert_eq!(files, ["initramfs.cpio.zst", &medium, "blocks.cpio", &format!("nodes/{node}.cpio")]);
        unpack(&path, &files, &target);
        let json = std::fs::read(target.join("imgbuild/medium.json")).unwrap();
        let script = std::fs::read_to_string(path.join(format!("nodes/{node}.ipxe"))).unwrap();
        assert!(script.contains(&format!("imgbuild.medium={} imgbuild.install={node}", Digest::of(&json))), "{script}");
        let index: Medium = serde_json::from_slice(&json).unwrap();
        let own = index.nodes.iter().find(|own| own.name == node).unwrap();
        let seed = ["meta-data", "user-data", "network-config"].map(|name| format!("nodes/{node}/{name}"));
        let needed = own.pieces.iter().map(|piece| &piece.file).chain([&own.root, &own.payload]).chain(&seed);
        for file in needed {
            let bytes = std::fs::read(target.join("imgbuild").join(file)).unwrap();
            let listed = &index.files[file];
            assert_eq!(
                (bytes.len() as u64, Digest::of(&bytes).to_string()),
                (listed.size, listed.sha256.clone()),
                "{file}"
            );
        }
        let others =
            tool_ok("find", "findutils", &[text(&target.join("imgbuild/nodes")), "-mindepth", "1", "-maxdepth", "1"]);
        assert_eq!(others.lines().count(), 2, "secrets of another node are loaded:\n{others}");
        assert_eq!(std::fs::read(target.join("init")).unwrap().len(), 3_000_001);

        if kind != "etcd" {
            let diskless = loaded(&path, node, "diskless");
            assert_eq!(diskless, ["initramfs.cpio.zst", &medium, &format!("nodes/{node}.cpio")]);
        }
    }
}

#[test]
fn memory_is_what_is_loaded_and_unpacked() {
    let (dir, store) = store();
    let path = dir.path().join("pxe");
    let plan = plan(&store, &THREE);
    let pxe = write(&plan, &store, &path).unwrap();
    for (node, memory) in &pxe.memory {
        let diskless = memory.diskless.map(|diskless| ("diskless", diskless));
        assert_eq!(diskless.is_none(), node == "etcd-1");
        for (variant, got) in [("install", memory.install)].into_iter().chain(diskless) {
            let sizes: u64 = loaded(&path, node, variant)[1..]
                .iter()
                .map(|file| std::fs::metadata(path.join(file)).unwrap().len())
                .sum();
            // The root filesystem holds the archives' files and init, and has half of the memory.
            let least = 2 * (sizes + 3_000_001) + 256 * MIB;
            assert!(got.abs_diff(least) < 200_000, "{node} {variant}: {got} and {least}");
        }
        assert!(memory.diskless.is_none_or(|diskless| diskless < memory.install));
    }
    let readme = std::fs::read_to_string(path.join("README.txt")).unwrap();
    for (node, memory) in &pxe.memory {
        let line = readme.lines().find(|line| line.trim_start().starts_with(node.as_str())).unwrap();
        assert!(line.ends_with(&memory.to_string()), "{line}");
    }
}

#[test]
fn it_is_the_same_again_and_follows_the_cluster() {
    let (dir, store) = store();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write(&plan(&store, &THREE), &store, &one).unwrap();
    // Over a folder with another node, which goes.
    write(&plan(&store, &[("etcd-1", "etcd"), ("other", "pods")]), &store, &two).unwrap();
    write(&plan(&store, &THREE), &store, &two).unwrap();
    tool_ok("diff", "diffutils", &["-r", text(&one), text(&two)]);
    let names: BTreeMap<String, u32> = std::fs::read_dir(&one)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    let wanted = [
        ("README.txt", 0o600),
        ("SHA256SUMS", 0o600),
        ("blocks.cpio", 0o600),
        ("boot.ipxe", 0o600),
        ("grub", 0o700),
        ("grub.cfg", 0o600),
        ("initramfs.cpio.zst", 0o600),
        ("mac", 0o700),
        ("medium-etcd.cpio", 0o600),
        ("medium-pods.cpio", 0o600),
        ("nodes", 0o700),
        ("vmlinuz", 0o600),
    ];
    assert_eq!(names, wanted.map(|(name, mode)| (name.to_owned(), mode)).into());
}

#[test]
fn what_a_menu_cannot_say_is_refused_before_anything_is_written() {
    let (dir, store) = store();
    let path = dir.path().join("out/pxe");
    let error =
        write(&PxePlan { kernel_args: vec!["a=\"b\"".into()], ..plan(&store, &THREE) }, &store, &path).unwrap_err();
    assert_eq!((kind(&error).exit_code(), hint(&error).is_some()), (1, true));
    assert!(!path.parent().unwrap().exists());
}

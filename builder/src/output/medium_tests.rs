// SPDX-License-Identifier: MIT OR Apache-2.0

//! A medium, put together again on a disk full of garbage, against the disk image, by other people's tools too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use profiles::medium::{Machine, MediumNode, Range, Target};
use profiles::node::Architecture;

use super::disk::{self, DiskPlan, Sizes, layout};
use super::disk_tests::{plan_of, squashfs};
use super::medium::{BuiltMedium, MediumPlan, NodePlan, Source, build};
use crate::error::{hint, kind};
use crate::image::gpt::{self, Partition, Table};
use crate::image::testing::{store, text, tool, tool_ok};
use crate::store::{Digest, Store};
use crate::tree::{Content, Entry, Kind};

const MIB: u64 = 1 << 20;

/// The smallest disk that holds it all: tests write every byte of it.
const SMALL: Sizes = Sizes { disk: 142 * MIB, esp: 40 * MIB, root: 5 * MIB, payload: 5 * MIB };

fn initramfs() -> Content {
    // Every block another.
    Content::Bytes(
        (0..5_000_000u32).map(|i| ((i >> 16) as u8).wrapping_add((i % 251) as u8)).collect::<Vec<_>>().into(),
    )
}

fn node(store: &Store, name: &str, kind: &'static str) -> NodePlan {
    let mut disk = DiskPlan { sizes: SMALL, ..plan_of(store, 2, name) };
    disk.esp.insert("imgbuild/a/initramfs.cpio.zst", Entry::new(Kind::File(initramfs()), 0o644)).unwrap();
    if kind == "etcd" {
        disk.payload = squashfs(store, 2, &[("payload.json", br#"{"schema":1}"#)]);
    }
    let machine = Machine { mac: Some("52:54:00:77:00:0b".into()), ..Machine::default() };
    NodePlan { disk, kind, etcd_member: kind == "etcd", machine, target: Target::default() }
}

pub(super) fn plan(store: &Store, nodes: &[(&str, &'static str)]) -> MediumPlan {
    MediumPlan {
        cluster: "lab".into(),
        cluster_id: "lab-1".into(),
        architecture: Architecture::Amd64,
        nodes: nodes.iter().map(|(name, kind)| node(store, name, kind)).collect(),
        signer: None,
    }
}

const THREE: [(&str, &str); 3] = [("etcd-1", "etcd"), ("master-1", "pods"), ("worker-1", "pods")];

fn bytes(source: &Source, store: &Store) -> Vec<u8> {
    let mut bytes = vec![];
    match source {
        Source::Object(digest) => _ = store.open_object(digest).unwrap().read_to_end(&mut bytes).unwrap(),
        Source::Nameless(file) => {
            bytes.resize(file.metadata().unwrap().len() as usize, 0);
            file.read_exact_at(&mut bytes, 0).unwrap();
        }
        Source::Bytes(own) => bytes.extend(own),
    }
    bytes
}

fn all(medium: &BuiltMedium, store: &Store) -> BTreeMap<String, Vec<u8>> {
    medium.files.iter().map(|(path, source)| (path.clone(), bytes(source, store))).collect()
}

/// What an installer does, on a disk where every bit is set.
fn install(node: &MediumNode, files: &BTreeMap<String, Vec<u8>>, path: &Path) -> File {
    let mut file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    for _ in 0..node.disk_size / MIB {
        file.write_all(&[0xFF; MIB as usize]).unwrap();
    }
    for Range { at, len } in &node.zero {
        file.write_all_at(&vec![0; *len as usize], *at).unwrap();
    }
    for piece in &node.pieces {
        let bytes = &files[&piece.file][piece.offset as usize..][..piece.len as usize];
        file.write_all_at(bytes, piece.at).unwrap();
    }
    file
}

fn part(file: &File, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn find<'a>(table: &'a Table, label: &str) -> &'a Partition {
    table.partitions.iter().find(|partition| partition.label == label).unwrap()
}

#[test]
fn an_installed_disk_is_the_image() {
    let (dir, store) = store();
    let plan = plan(&store, &THREE);
    let medium = build(&plan, &store).unwrap();
    let files = all(&medium, &store);
    for (NodePlan { disk, .. }, node) in plan.nodes.iter().zip(&medium.index.nodes) {
        let (image, target) = (dir.path().join(format!("{}.img", node.name)), dir.path().join(&node.name));
        let table = disk::write(disk, &store, &image).unwrap().table;
        let image = File::open(image).unwrap();
        let mut installed = install(node, &files, &target);
        assert_eq!(gpt::read(&mut installed).unwrap(), table);
        let verify = tool_ok("sgdisk", "gdisk", &["-v", text(&target)]);
        assert!(verify.contains("No problems found"), "{verify}");

        let same = |what: &str, at: u64, len: u64| {
            assert!(part(&image, at, len) == part(&installed, at, len), "{what} of {} differs", node.name);
        };
        same("the head", 0, MIB);
        let (seed, data) = (find(&table, "CIDATA"), find(&table, "data"));
        same("the seed", seed.offset, seed.len);
        same("the end", data.offset + data.len, node.disk_size - data.offset - data.len);
        for (label, file) in [("root-a", &node.root), ("payload-a", &node.payload)] {
            same(label, find(&table, label).offset, files[file].len() as u64);
        }
        let esp = find(&table, "ESP");
        let used = part(&image, esp.offset, esp.len).iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
        same("the ESP", esp.offset, used);
        // The unused rest is garbage, and nobody minds.
        assert_eq!(part(&installed, esp.offset + esp.len - 1, 1), [0xFF]);
        let alone = dir.path().join("esp");
        std::fs::write(&alone, part(&installed, esp.offset, esp.len)).unwrap();
        tool_ok("fsck.vfat", "dosfstools", &["-n", text(&alone)]);
        tool_ok(
            "mcopy",
            "mtools",
            &["-n", "-i", text(&alone), "::imgbuild/a/initramfs.cpio.zst", text(&dir.path().join("copy"))],
        );
        assert!(std::fs::read(dir.path().join("copy")).unwrap() == initramfs().read(&store).unwrap());

        for label in ["root-b", "payload-b", "data"] {
            let Partition { offset, len, .. } = *find(&table, label);
            for at in [offset, offset + len - MIB] {
                assert!(part(&installed, at, MIB).iter().all(|byte| *byte == 0), "{label} of {} at {at}", node.name);
            }
            std::fs::write(&alone, part(&installed, offset, len)).unwrap();
            // Exit code 2: nothing was found.
            let found = tool("blkid", "util-linux", &["-p", text(&alone)]);
            assert_eq!((found.status.code(), found.stdout), (Some(2), vec![]), "{label} of {}", node.name);
        }
        std::fs::remove_file(target).unwrap();
    }
}

#[test]
fn the_index_is_sound() {
    let (_dir, store) = store();
    let plan = plan(&store, &THREE);
    let medium = build(&plan, &store).unwrap();
    let files = all(&medium, &store);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let shared = ["blocks.bin", "payload-etcd.squashfs", "payload-pods.squashfs", "root-pods.squashfs"];
    let of = |node: &str| {
        ["/meta-data", "/network-config", "/user-data"].map(|file| format!("nodes/{node}{file}")).into_iter()
    };
    let mut wanted: Vec<String> = shared.map(str::to_owned).to_vec();
    wanted.extend(THREE.iter().flat_map(|(node, _)| of(node).chain([format!("nodes/{node}.bin")])));
    wanted.sort();
    assert_eq!(names, wanted, "the root, which is the same for all, is there once");

    assert_eq!(medium.index.files.len(), files.len());
    for (path, file) in &medium.index.files {
        assert_eq!((file.size, &file.sha256), (files[path].len() as u64, &Digest::of(&files[path]).to_string()));
    }
    assert_eq!(serde_json::from_slice::<profiles::medium::Medium>(&medium.json).unwrap(), medium.index);
    for (node, planned) in medium.index.nodes.iter().zip(&plan.nodes) {
        assert_eq!(node.disk_guid, layout(&planned.disk).unwrap().disk.to_string());
        assert_eq!((node.disk_size, &node.machine), (SMALL.disk, &planned.machine));
        assert!(node.pieces.is_sorted_by_key(|piece| piece.at) && node.pieces[0].at == 0);
        assert!(node.zero.is_sorted_by_key(|range| range.at));
        // Nothing is said twice, and everything lies on the disk and in its file.
        let pieces = node.pieces.iter().map(|piece| (piece.at, piece.len));
        let mut parts: Vec<(u64, u64)> = pieces.chain(node.zero.iter().map(|range| (range.at, range.len))).collect();
        parts.sort_unstable();
        assert!(parts.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "{parts:?}");
        let (at, len) = *parts.last().unwrap();
        assert!(at + len <= node.disk_size);
        for piece in &node.pieces {
            assert!(piece.len > 0 && piece.offset + piece.len <= files[&piece.file].len() as u64, "{piece:?}");
            assert!(!piece.file.starts_with("nodes/") || piece.file == format!("nodes/{}.bin", node.name));
        }
    }
}

#[test]
fn what_is_shared_is_there_once_and_secrets_are_not_shared() {
    let (_dir, store) = store();
    let medium = build(&plan(&store, &THREE), &store).unwrap();
    let files = all(&medium, &store);
    let has_secret = |path: &str| files[path].windows(10).any(|bytes| bytes == b"TOP SECRET");
    assert!(!has_secret("blocks.bin"));
    let initramfs = initramfs().len();
    assert!((initramfs - (64 << 10)..initramfs + (256 << 10)).contains(&(files["blocks.bin"].len() as u64)));
    for (node, _) in THREE {
        assert!(has_secret(&format!("nodes/{node}.bin")) && has_secret(&format!("nodes/{node}/user-data")));
        assert!(files[&format!("nodes/{node}.bin")].len() < 1 << 20, "{}", files[&format!("nodes/{node}.bin")].len());
    }
    let alone = build(&plan(&store, &THREE[..1]), &store).unwrap();
    let files = all(&alone, &store);
    assert!(!files.contains_key("blocks.bin") && files["nodes/etcd-1.bin"].len() as u64 > initramfs);
    assert!(files.contains_key("root-etcd.squashfs") && files.contains_key("payload-etcd.squashfs"));
}

#[test]
fn the_same_plan_gives_the_same_medium() {
    let ((_dir, store), (_other_dir, other)) = (store(), store());
    let (one, two) = (build(&plan(&store, &THREE), &store).unwrap(), build(&plan(&other, &THREE), &other).unwrap());
    assert!(one.json == two.json && all(&one, &store) == all(&two, &other));
    assert_ne!(build(&plan(&store, &THREE[1..]), &store).unwrap().digest(), one.digest());
}

#[test]
fn what_does_not_fit_names_the_node_and_the_number() {
    let (_dir, store) = store();
    let mut plan = plan(&store, &THREE);
    plan.nodes[1].disk.sizes.disk = 100 * MIB;
    let error = build(&plan, &store).unwrap_err();
    assert_eq!(format!("{error:#}"), "the disk of master-1: the partitions do not fit on a disk of 100MiB");
    let wanted = "set `[disk] size` to at least \"142MiB\"";
    assert_eq!((kind(&error).exit_code(), hint(&error).as_deref()), (1, Some(wanted)));
    plan.nodes.clear();
    assert_eq!(build(&plan, &store).unwrap_err().to_string(), "a medium without nodes");
}

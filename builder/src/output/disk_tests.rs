// SPDX-License-Identifier: MIT OR Apache-2.0

//! The whole disk, against other people's tools and against itself.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::disk::{DiskPlan, Sizes, disk_guid, layout, write};
use super::esp::{EspParts, esp_tree};
use super::inspect::{Volume, inspect};
use crate::error::{hint, kind};
use crate::image::squashfs::{self, Options};
use crate::image::testing::{store, text, tool_ok};
use crate::store::Store;
use crate::tree::{Content, Entry, FileTree, Kind};
use profiles::node::Architecture;

const MIB: u64 = 1 << 20;
pub(super) const GOLDEN: u32 = 1_600_000_000;

pub(super) fn squashfs(store: &Store, jobs: usize, files: &[(&str, &[u8])]) -> crate::store::Digest {
    let mut tree = FileTree::new();
    for (path, bytes) in files {
        tree.insert(path, Entry::file(*bytes, 0o644)).unwrap();
    }
    tree.insert("big", Entry::file((0..3_000_000u32).map(|i| (i >> 7) as u8).collect::<Vec<_>>(), 0o644)).unwrap();
    squashfs::pack(&tree, store, &Options { jobs, ..Options::new(GOLDEN) }).unwrap().object
}

fn plan(store: &Store, jobs: usize) -> DiskPlan {
    plan_of(store, jobs, "master-1")
}

pub(super) fn plan_of(store: &Store, jobs: usize, node: &str) -> DiskPlan {
    let bytes = |text: &str| Content::Bytes(text.as_bytes().into());
    let esp = esp_tree(&EspParts {
        architecture: Architecture::Amd64,
        boot_loader: bytes("loader"),
        kernel: bytes("kernel"),
        initramfs: Content::Bytes(vec![9; 5_000_000].into()),
        disk: disk_guid("lab-1", node),
        title: format!("lab {node}"),
        version: "0.1.0".into(),
        kernel_args: vec![],
    })
    .unwrap();
    let mut seed = FileTree::new();
    let user = format!(
        "#cloud-config\nhostname: {node}\nimgbuild:\n  schema: 1\n  profile: {{node: {{name: {node}}}}}\n  \
         secrets:\n    /etc/kubernetes/pki/ca.key: |\n      TOP SECRET\n"
    );
    let meta = format!("instance-id: lab-1-{node}-0\nlocal-hostname: {node}\n");
    seed.insert("meta-data", Entry::file(meta.into_bytes(), 0o600)).unwrap();
    seed.insert("user-data", Entry::file(user.into_bytes(), 0o600)).unwrap();
    seed.insert("network-config", Entry::file(*b"version: 2\n", 0o600)).unwrap();
    DiskPlan {
        cluster_id: "lab-1".into(),
        node: node.to_owned(),
        architecture: Architecture::Amd64,
        sizes: Sizes { disk: 1024 * MIB, esp: 64 * MIB, root: 32 * MIB, payload: 32 * MIB },
        esp,
        root: squashfs(store, jobs, &[("etc/os-release", b"ID=x\n")]),
        payload: squashfs(store, jobs, &[("payload.json", br#"{"schema":1,"kubernetes":"v1.20.2"}"#)]),
        seed,
    }
}

#[test]
fn other_tools_accept_the_disk() {
    let (dir, store) = store();
    let path = dir.path().join("out/master-1.img");
    let plan = plan(&store, 2);
    let disk = write(&plan, &store, &path).unwrap();
    assert_eq!(disk.size, 1024 * MIB);
    let verify = tool_ok("sgdisk", "gdisk", &["-v", text(&path)]);
    assert!(verify.contains("No problems found"), "{verify}");
    tool_ok("sfdisk", "fdisk", &["--verify", text(&path)]);
    let dump = tool_ok("sfdisk", "fdisk", &["--json", text(&path)]);
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let parts = dump["partitiontable"]["partitions"].as_array().unwrap();
    let names: Vec<&str> = parts.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ESP", "root-a", "root-b", "payload-a", "payload-b", "CIDATA", "data"]);
    assert_eq!(parts[1]["type"], "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709");
    assert_eq!(parts[1]["attrs"], "GUID:63");
    assert!(parts[0].get("attrs").is_none());
    let table = &disk.table.partitions;
    let names = tool_ok("mdir", "mtools", &["-b", "-i", &format!("{}@@{}", text(&path), table[5].offset), "::"]);
    assert_eq!(names.lines().count(), 3);
    let offset = table[3].offset.to_string();
    let list = tool_ok("unsquashfs", "squashfs-tools", &["-l", "-o", &offset, text(&path)]);
    assert!(list.contains("squashfs-root/payload.json"), "{list}");
    let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(allocated < 16 * MIB, "the image is not sparse: {allocated} bytes");
}

#[test]
fn inspect_shows_everything_but_secrets() {
    let (dir, store) = store();
    let path = dir.path().join("a.img");
    write(&plan(&store, 2), &store, &path).unwrap();
    let found = inspect(&path).unwrap();
    assert_eq!(found.table, layout(&plan(&store, 1)).unwrap());
    let (text, json) = (found.to_string(), serde_json::to_string(&found).unwrap());
    for want in ["/etc/kubernetes/pki/ca.key", "v1.20.2", "imgbuild.slot=a", "lab-1-master-1-0", "local-hostname"] {
        assert!(text.contains(want), "{want}\n{text}");
        assert!(json.contains(want), "{want}\n{json}");
    }
    assert!(!text.contains("TOP SECRET") && !json.contains("TOP SECRET"));
    assert!(matches!(found.contents["root-b"], Volume::Empty));
    let Volume::Squashfs(root) = &found.contents["root-a"] else { panic!("{text}") };
    assert_eq!((root.files, root.directories, root.mtime), (2, 2, GOLDEN));
}

#[test]
fn jobs_folders_and_the_store_do_not_show() {
    let ((dir, store), (other_dir, other_store)) = (store(), store());
    let (one, two) = (dir.path().join("a.img"), other_dir.path().join("sub/folder/b.img"));
    write(&plan(&store, 1), &store, &one).unwrap();
    write(&plan(&other_store, 5), &other_store, &two).unwrap();
    // And once more over an image that is there, from a filled store.
    write(&plan(&store, 3), &store, &one).unwrap();
    assert!(Command::new("cmp").args([&one, &two]).status().unwrap().success());
}

#[test]
fn what_does_not_fit_is_refused_with_the_number_to_set() {
    let (dir, store) = store();
    let path = dir.path().join("out/a.img");
    let refused = |change: &dyn Fn(&mut DiskPlan), message: &str, wanted: &str| {
        let mut plan = plan(&store, 2);
        change(&mut plan);
        let error = write(&plan, &store, &path).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!((kind(&error).exit_code(), hint(&error).as_deref()), (1, Some(wanted)));
        assert!(!path.parent().unwrap().exists());
    };
    refused(
        &|plan| plan.sizes.disk = 200 * MIB,
        "the partitions do not fit on a disk of 200MiB",
        "set `[disk] size` to at least \"274MiB\"",
    );
    refused(
        &|plan| plan.sizes.root = MIB / 2,
        "`[disk] root_size` is 524288 bytes, not a whole number of MiB",
        "write it like root_size = \"512MiB\"",
    );
    refused(
        &|plan| {
            let mut state = 1u64;
            let mut next = || {
                // xorshift64: nothing compresses it.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            };
            let noise: Vec<u8> = (0..2_000_000).map(|_| next()).collect();
            let file = [("noise", noise.as_slice())];
            plan.payload = squashfs(&store, 1, &file);
            plan.sizes.payload = MIB;
        },
        "the payload image has 2MiB and `[disk] payload_size` is 1MiB",
        "set `[disk] payload_size` to at least \"2MiB\"",
    );
    refused(
        &|plan| {
            let kernel = Content::Bytes(vec![0; 64 << 20].into());
            plan.esp.insert("imgbuild/a/vmlinuz", Entry::new(Kind::File(kernel), 0o644)).unwrap();
        },
        "the EFI system partition needs 71MiB and `[disk] esp_size` is 64MiB",
        "set `[disk] esp_size` to at least \"71MiB\"",
    );
    let mut plan = plan(&store, 2);
    plan.sizes.disk = 274 * MIB;
    write(&plan, &store, &path).unwrap();
    // The numbers are enough.
    let kernel = Content::Bytes(vec![0; 64 << 20].into());
    plan.esp.insert("imgbuild/a/vmlinuz", Entry::new(Kind::File(kernel), 0o644)).unwrap();
    plan.sizes = Sizes { disk: 1024 * MIB, esp: 71 * MIB, ..plan.sizes };
    write(&plan, &store, &path).unwrap();
}

#[test]
fn a_failing_build_leaves_nothing_and_keeps_what_was_there() {
    let (dir, store) = store();
    let path = dir.path().join("a.img");
    std::fs::write(&path, "the image before").unwrap();
    let mut plan = plan(&store, 2);
    let gone = Content::Slice { object: crate::store::Digest::of(b"gone"), offset: 0, len: 5 };
    plan.esp.insert("imgbuild/a/vmlinuz", Entry::new(Kind::File(gone), 0o644)).unwrap();
    assert!(write(&plan, &store, &path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "the image before");
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The installation image, against other people's tools and against itself.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::disk_tests::GOLDEN;
use super::inspect_iso::{inspect, is_iso};
use super::iso::{IsoPlan, write};
use super::medium_tests::plan as medium_plan;
use crate::error::{hint, kind};
use crate::image::testing::{store, text, tool_ok};
use crate::store::{Digest, Store};
use crate::tree::Content;

const NODES: [(&str, &str); 2] =
    [("etcd-1", "etcd"), ("a-node-whose-name-has-sixty-three-characters-as-long-as-may-be1", "pods")];

pub(super) fn plan(store: &Store) -> IsoPlan {
    IsoPlan {
        medium: medium_plan(store, &NODES),
        boot_loader: Content::Bytes(vec![1; 100_000].into()),
        kernel: Content::Bytes(vec![2; 1_000_000].into()),
        initramfs: Content::Bytes(vec![3; 40_000_000].into()),
        version: "v1.20.2 6.1.0".into(),
        kernel_args: vec!["net.ifnames=0".into()],
        time: GOLDEN,
    }
}

/// What isoinfo reads by its Rock Ridge name.
fn file(iso: &Path, path: &str) -> String {
    tool_ok("isoinfo", "genisoimage", &["-R", "-i", text(iso), "-x", &format!("/{path}")])
}

#[test]
fn other_tools_accept_the_image() {
    let (dir, store) = store();
    let path = dir.path().join("out/lab.iso");
    let iso = write(&plan(&store), &store, &path).unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (iso.size, 0o600));

    let verify = tool_ok("sgdisk", "gdisk", &["-v", text(&path)]);
    assert!(verify.contains("No problems found"), "{verify}");
    let table = tool_ok("sfdisk", "fdisk", &["--json", text(&path)]);
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    let partitions = table["partitiontable"]["partitions"].as_array().unwrap();
    let esp = partitions.iter().find(|p| p["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B").unwrap();
    let (start, size) = (esp["start"].as_u64().unwrap(), esp["size"].as_u64().unwrap());

    // The very same volume for a CD, in sectors of 2048 bytes; length 1 means "to the end".
    let report = tool_ok("xorriso", "xorriso", &["-indev", text(&path), "-report_el_torito", "plain"]);
    let entry = report.lines().find(|line| line.starts_with("El Torito boot img :   1")).unwrap();
    let fields: Vec<&str> = entry.split_whitespace().collect();
    assert_eq!(fields[6..9], ["UEFI", "y", "none"], "{report}");
    assert_eq!(fields[11..13], ["1", &(start / 4).to_string()], "{report}");
    let damaged = tool_ok("xorriso", "xorriso", &["-indev", text(&path), "-check_media", "use=indev", "--"]);
    assert!(!damaged.contains("unreadable"), "{damaged}");

    let volume = tool_ok("isoinfo", "genisoimage", &["-d", "-i", text(&path)]);
    assert!(
        volume.contains("Volume id: IMGBUILD") && volume.contains("Rock Ridge signatures version 1 found"),
        "{volume}"
    );
    let names = tool_ok("isoinfo", "genisoimage", &["-R", "-f", "-i", text(&path)]);
    for (node, _) in NODES {
        for name in [format!("/imgbuild/nodes/{node}.bin"), format!("/imgbuild/nodes/{node}/user-data")] {
            assert!(names.lines().any(|line| line == name), "{name} in\n{names}");
        }
    }
    let listing = tool_ok("isoinfo", "genisoimage", &["-R", "-l", "-i", text(&path)]);
    let mode = |name: &str| listing.lines().find(|line| line.ends_with(&format!(" {name} "))).unwrap()[..10].to_owned();
    assert_eq!([mode("user-data"), mode("medium.json")], ["-r--------", "-r--r--r--"], "{listing}");

    // Every file is what the index says, and the index what the menu says.
    let json = file(&path, "imgbuild/medium.json");
    let medium: profiles::medium::Medium = serde_json::from_str(&json).unwrap();
    let tree = dir.path().join("tree");
    tool_ok("xorriso", "xorriso", &["-osirrox", "on", "-indev", text(&path), "-extract", "/", text(&tree)]);
    for (name, wanted) in &medium.files {
        let bytes = std::fs::read(tree.join("imgbuild").join(name)).unwrap();
        assert_eq!(
            (bytes.len() as u64, Digest::of(&bytes).to_string()),
            (wanted.size, wanted.sha256.clone()),
            "{name}"
        );
    }
    let alone = dir.path().join("esp");
    let mut bytes = vec![0; size as usize * 512];
    File::open(&path).unwrap().read_exact_at(&mut bytes, start * 512).unwrap();
    std::fs::write(&alone, bytes).unwrap();
    tool_ok("fsck.vfat", "dosfstools", &["-n", text(&alone)]);
    let entry = |name: &str| {
        tool_ok("mtype", "mtools", &["-i", text(&alone), &format!("::loader/entries/imgbuild-{name}.conf")])
    };
    let digest = Digest::of(json.as_bytes());
    assert_eq!(
        entry("auto"),
        format!(
            "title lab: install the node that this machine is (automatic)\nsort-key imgbuild-0000\nversion v1.20.2 6.1.0\n\
             linux /imgbuild/vmlinuz\ninitrd /imgbuild/initramfs.cpio.zst\n\
             options imgbuild.medium={digest} imgbuild.install=auto console=tty0 console=ttyS0,115200 net.ifnames=0\n"
        )
    );
    assert!(entry("install-etcd-1").contains(" imgbuild.install=etcd-1 "), "{}", entry("install-etcd-1"));
    assert!(entry("rescue").contains(" imgbuild.rescue "), "{}", entry("rescue"));
    let loader = tool_ok("mtype", "mtools", &["-i", text(&alone), "::loader/loader.conf"]);
    assert_eq!(loader, "timeout 10\ndefault imgbuild-auto.conf\nconsole-mode keep\n");
}

#[test]
fn the_same_plan_gives_the_same_image() {
    let ((dir, store), (other_dir, other)) = (store(), store());
    let (one, two) = (dir.path().join("a.iso"), other_dir.path().join("sub/b.iso"));
    write(&plan(&store), &store, &one).unwrap();
    write(&plan(&other), &other, &two).unwrap();
    assert!(Command::new("cmp").args([&one, &two]).status().unwrap().success());
}

#[test]
fn inspect_shows_nodes_files_and_menu_but_no_secrets() {
    let (dir, store) = store();
    let path = dir.path().join("lab.iso");
    write(&plan(&store), &store, &path).unwrap();
    assert!(is_iso(&path).unwrap());
    let found = inspect(&path).unwrap();
    let (text, json) = (found.to_string(), serde_json::to_string(&found).unwrap());
    for want in
        ["etcd-1", "52:54:00:77:00:0b", "imgbuild/nodes/etcd-1/user-data", "imgbuild.rescue", "EFI/BOOT/BOOTX64.EFI"]
    {
        assert!(text.contains(want), "{want}\n{text}");
        assert!(json.contains(want), "{want}\n{json}");
    }
    assert!(!text.contains("TOP SECRET") && !json.contains("TOP SECRET"));
    assert!(text.contains("imgbuild/nodes/etcd-1/user-data  (secrets)"), "{text}");

    // Other images, and damaged ones, are told as what they are.
    std::fs::write(dir.path().join("short"), "CD001").unwrap();
    assert!(!is_iso(&dir.path().join("short")).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|bytes| bytes == b"\"schema\":").unwrap();
    bytes[at + 10] = b'2';
    std::fs::write(&path, &bytes).unwrap();
    let error = format!("{:#}", inspect(&path).unwrap_err());
    assert!(error.ends_with("its imgbuild/medium.json has schema 2, and this imgbuild reads 1"), "{error}");
    std::fs::write(&path, &bytes[..100_000]).unwrap();
    assert!(inspect(&path).is_err());
}

#[test]
fn nothing_is_left_of_an_image_that_fails() {
    let (dir, store) = store();
    let path = dir.path().join("out/lab.iso");
    let mut plan = plan(&store);
    plan.medium.nodes[0].disk.sizes.root = 1 << 20;
    plan.medium.nodes[0].disk.root = {
        let noise: Vec<u8> =
            (0..1u32 << 19).flat_map(|i| Digest::of(&i.to_le_bytes()).as_bytes()[..4].to_vec()).collect();
        super::disk_tests::squashfs(&store, 2, &[("noise", &noise)])
    };
    let error = write(&plan, &store, &path).unwrap_err();
    assert_eq!(format!("{error:#}"), "the disk of etcd-1: the root image has 3MiB and `[disk] root_size` is 1MiB");
    assert_eq!(hint(&error).as_deref(), Some("set `[disk] root_size` to at least \"3MiB\""));
    assert_eq!(kind(&error).exit_code(), 1);
    plan = self::plan(&store);
    plan.kernel_args.push("a\nb".into());
    assert_eq!(write(&plan, &store, &path).unwrap_err().to_string(), "\"a\\nb\" cannot stand in a boot loader entry");
    assert!(!path.parent().unwrap().exists());
}

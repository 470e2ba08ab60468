// SPDX-License-Identifier: MIT OR Apache-2.0

//! Outputs as the builder writes them are right, and every kind of damage is found.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use super::verify::{Verified, verify};
use super::{disk, disk_tests, inspect_iso, iso, iso_tests, pxe, pxe_tests};
use crate::error::{ErrorKind, hint, kind};
use crate::image::testing::{store, text, tool_ok};
use crate::store::Digest;

/// Where these bytes are in a file for the first time.
fn find(path: &Path, bytes: &[u8]) -> u64 {
    let content = fs::read(path).unwrap();
    content.windows(bytes.len()).position(|window| window == bytes).unwrap() as u64
}

/// Changes one bit of a file.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn problems(path: &Path) -> Vec<String> {
    verify(path, None).unwrap().problems
}

/// Checks that there is one problem, of which this is a part.
fn has_one_problem(path: &Path, part: &str) {
    let found = problems(path);
    assert!(found.len() == 1 && found[0].contains(part), "`{part}` wanted: {found:#?}");
}

#[test]
fn a_pxe_folder_is_what_its_list_says() {
    let (dir, store) = store();
    let folder = dir.path().join("out/lab-pxe");
    pxe::write(&pxe_tests::plan(&store, &pxe_tests::THREE), &store, &folder).unwrap();
    let lines = fs::read_to_string(folder.join("SHA256SUMS")).unwrap().lines().count();
    let kind = "a folder with a list of checksums";
    assert_eq!(verify(&folder, None).unwrap(), Verified { kind, checked: lines, ..Verified::default() });

    flip(&folder.join("nodes/etcd-1.cpio"), 1000);
    fs::rename(folder.join("README.txt"), folder.join("README")).unwrap();
    fs::remove_file(folder.join("boot.ipxe")).unwrap();
    symlink("/etc/hostname", folder.join("boot.ipxe")).unwrap();
    let found = problems(&folder);
    let wanted = [
        "README.txt: is not there",
        "README: is in no list of checksums",
        "boot.ipxe: cannot be opened: ",
        "boot.ipxe: is neither a file nor a folder",
        "nodes/etcd-1.cpio: sha256 is ",
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for wanted in wanted {
        assert!(found.iter().any(|found| found.starts_with(wanted)), "`{wanted}` wanted: {found:#?}");
    }
}

#[test]
fn a_list_that_is_none_is_a_problem_and_no_list_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let e = verify(dir.path(), None).unwrap_err();
    assert_eq!(kind(&e), ErrorKind::User);
    assert!(e.to_string().contains("has no list of checksums") && hint(&e).unwrap().contains("pxe"), "{e}");
    let list = dir.path().join("SHA256SUMS");
    let sum = Digest::of(b"");
    for (text, why) in [
        ("hello\n".to_owned(), "SHA256SUMS: line 1: no checksum and path"),
        ("00  a\n".to_owned(), "line 1: `00` is not a sha256"),
        (format!("{sum}  ../a\n"), "line 1: `../a` leads out of the folder"),
        (format!("{sum}  /etc/hostname\n"), "leads out of the folder"),
        (format!("{sum}  SHA256SUMS\n{sum}  SHA256SUMS\n"), "line 2: `SHA256SUMS` for the second time"),
    ] {
        fs::write(&list, text).unwrap();
        has_one_problem(dir.path(), why);
    }
    fs::write(&list, b"\xff").unwrap();
    has_one_problem(dir.path(), "is not UTF-8");
    let e = verify(&dir.path().join("none"), None).unwrap_err();
    assert_eq!(kind(&e), ErrorKind::User);
}

/// A bundle that tar, zstd and sha256sum make.
fn bundle(dir: &Path, script: &str) -> std::path::PathBuf {
    let make = format!(
        "cd \"$1\"; rm -rf top a.tar.zst; mkdir -p top/amd64/etcd; echo one > top/amd64/one; echo two > top/install; \
         ln top/amd64/one top/amd64/etcd/again; \
         (cd top; sha256sum install amd64/one amd64/etcd/again > ../sums; mv ../sums SHA256SUMS.amd64); {script}\n\
         tar --sort=name -cf - top | zstd -q --check -o a.tar.zst"
    );
    tool_ok("sh", "tar, zstd", &["-ec", &make, "sh", text(dir)]);
    dir.join("a.tar.zst")
}

#[test]
fn a_bundle_is_what_its_list_says() {
    let dir = tempfile::tempdir().unwrap();
    let good = bundle(dir.path(), "true");
    assert_eq!(verify(&good, None).unwrap(), Verified { kind: "a bundle", checked: 3, ..Verified::default() });
    // Unpacked, it is a folder.
    assert_eq!(verify(&dir.path().join("top"), None).unwrap().checked, 3);
    let size = fs::metadata(&good).unwrap().len();
    flip(&good, size - 10);
    assert!(!problems(&good).is_empty());
    let good = bundle(dir.path(), "true");
    File::options().write(true).open(&good).unwrap().set_len(size - 4).unwrap();
    assert!(!problems(&good).is_empty(), "an archive that was cut off");

    for (script, wanted) in [
        ("echo 2 > top/install", "install: sha256 is "),
        ("rm top/install", "install: is not there"),
        ("echo x > top/extra", "extra: is in no list of checksums"),
        ("ln -s install top/link", "link: is neither a file nor a folder"),
        ("rm top/SHA256SUMS.amd64", "holds no list of checksums"),
        ("for n in a b; do truncate -s 40M top/SHA256SUMS.$n; done", "its lists of checksums have more than 64 MiB"),
    ] {
        has_one_problem(&bundle(dir.path(), script), wanted);
    }
}

#[test]
fn an_installation_image_is_what_its_menu_and_index_say() {
    let (dir, store) = store();
    let path = dir.path().join("lab.iso");
    iso::write(&iso_tests::plan(&store), &store, &path).unwrap();
    let found = verify(&path, None).unwrap();
    assert_eq!((found.kind, found.problems, found.unchecked.len()), ("an installation image", vec![], 1));
    let inspected = inspect_iso::inspect(&path).unwrap();
    // Every file but the index itself, and every entry of the menu that boots an installer or the rescue system.
    let entries = inspected.menu.values().filter(|text| text.contains("imgbuild.medium=")).count();
    assert_eq!(found.checked, inspected.files.len() - 1 + entries);

    // What a node's secrets are, and what the menu wants.
    let at = find(&path, b"TOP SECRET");
    flip(&path, at);
    let found = problems(&path);
    assert!(found.iter().any(|found| found.contains("nodes/")), "{found:#?}");
    assert!(!found.iter().any(|found| found.contains("SECRET")), "{found:#?}");
    flip(&path, at);
    assert_eq!(problems(&path), [""; 0]);
    let menu = format!("imgbuild.medium={}", inspected.medium);
    let at = find(&path, menu.as_bytes()) + menu.len() as u64 - 1;
    flip(&path, at);
    has_one_problem(&path, "wants the index with sha256 ");
}

#[test]
fn a_disk_image_is_read_to_the_last_block() {
    let (dir, store) = store();
    let path = dir.path().join("master-1.img");
    let good = Digest::of(b"a layer");
    let plan = |name: &Digest| {
        let blob = format!("images/blobs/sha256/{name}");
        let payload = disk_tests::squashfs(&store, 1, &[("payload.json", b"{}"), (&blob, b"a layer")]);
        disk::DiskPlan { payload, ..disk_tests::plan_of(&store, 1, "master-1") }
    };
    disk::write(&plan(&good), &store, &path).unwrap();
    let found = verify(&path, None).unwrap();
    assert_eq!((found.kind, found.checked, found.problems), ("a disk image", 2, vec![]));
    assert_eq!(found.unchecked.len(), 4, "ESP, root, payload, seed: {:?}", found.unchecked);

    // The backup of the partition table is in the last sector of the disk; at 40, it says where partitions may begin.
    let size = fs::metadata(&path).unwrap().len();
    flip(&path, size - 512 + 40);
    has_one_problem(&path, "backup partition table");
    disk::write(&plan(&Digest::of(b"another")), &store, &path).unwrap();
    has_one_problem(&path, &format!("payload-a: images/blobs/sha256/{}: sha256 is {good}", Digest::of(b"another")));

    disk::write(&plan(&good), &store, &path).unwrap();
    let table = super::inspect::inspect(&path).unwrap().table;
    let at = |label: &str| table.partitions.iter().find(|partition| partition.label == label).unwrap().offset;
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // The frame of the first block of data (RFC 8878: its magic number), somewhere behind the superblock of 96 bytes.
    let mut begin = [0; 4096];
    file.read_exact_at(&mut begin, at("root-a")).unwrap();
    let frame = 96 + begin[96..].windows(4).position(|bytes| bytes == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
    file.write_all_at(&[0; 4], at("root-a") + u64::try_from(frame).unwrap()).unwrap();
    file.write_all_at(&[0; 4], at("payload-a")).unwrap();
    file.write_all_at(&[0; 512], at("CIDATA")).unwrap();
    let found = problems(&path);
    for part in ["CIDATA: ", "payload-a: there is nothing in it", "root-a: big: decompressing a block"] {
        assert!(found.iter().any(|found| found.starts_with(part)), "`{part}` wanted: {found:#?}");
    }
}

#[test]
fn what_carries_nothing_is_refused_and_what_is_nothing_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    fs::write(&path, b"QFI\xfb").unwrap();
    let e = verify(&path, None).unwrap_err();
    assert_eq!(kind(&e), ErrorKind::User);
    assert!(hint(&e).unwrap().contains("qemu-img convert"));
    for bytes in [b"".as_slice(), b"text", &[0; 100_000], b"\x28\xb5\x2f\xfd"] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(problems(&path).len(), 1, "{:?}", problems(&path));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lab's installation image, judged by other people's tools, and the disk that comes of it against the disk image.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use imgbuild_tests::build::{binary, folder, lab};
use imgbuild_tests::cli::{Outcome, contents};
use imgbuild_tests::disk::{self, extract, read_fat};
use imgbuild_tests::tool::{run, run_bytes, tool};
use profiles::medium::Medium;

/// The image, built once, from the same lock and secrets as the lab's disk image.
fn iso() -> &'static Path {
    static ISO: OnceLock<PathBuf> = OnceLock::new();
    ISO.get_or_init(|| build("iso", "2"))
}

fn build(name: &str, jobs: &str) -> PathBuf {
    let out = folder().join(name);
    let mut command = Command::new(binary());
    command.args(["build", "--all", "--output", "iso", "--jobs", jobs, "--cluster"]).arg(&lab().cluster);
    Outcome::of(command.arg("--out").arg(&out).current_dir(folder())).succeeds();
    out.join("lab.iso")
}

/// Its files, as xorriso reads them.
fn tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        let tree = folder().join("iso-tree");
        if tree.exists() {
            run(Command::new("chmod").args(["-R", "u+w"]).arg(&tree));
            fs::remove_dir_all(&tree).unwrap();
        }
        run(tool("xorriso").args(["-osirrox", "on", "-indev"]).arg(iso()).args(["-extract", "/"]).arg(&tree));
        tree
    })
}

fn medium() -> Medium {
    serde_json::from_slice(&fs::read(tree().join("imgbuild/medium.json")).unwrap()).unwrap()
}

/// Its EFI system partition, taken out by the partition table.
fn esp() -> PathBuf {
    static PART: OnceLock<PathBuf> = OnceLock::new();
    PART.get_or_init(|| extract(iso(), &disk::esp(iso()).name, &folder().join("iso-esp"))).clone()
}

fn esp_file(path: &str) -> Vec<u8> {
    run_bytes(tool("mcopy").arg("-i").arg(esp()).args([&format!("::{path}"), "-"]))
}

fn sha256(path: &Path) -> String {
    let sum = run(Command::new("sha256sum").arg("--").arg(path));
    sum.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn built_lab_sgdisk_xorriso_and_isoinfo_accept_the_iso() {
    let verdict = run(tool("sgdisk").arg("-v").arg(iso()));
    assert!(verdict.contains("No problems found"), "{verdict}");
    let report = run(tool("xorriso").arg("-indev").arg(iso()).args(["-report_el_torito", "plain"]));
    assert!(report.lines().any(|line| line.starts_with("El Torito boot img :   1  UEFI  y   none")), "{report}");
    let esp = disk::esp(iso());
    let entry = report.lines().find(|line| line.starts_with("El Torito boot img :   1")).unwrap();
    let lba: u64 = entry.split_whitespace().last().unwrap().parse().unwrap();
    assert_eq!(lba * 2048, esp.offset, "the CD's and the stick's system partition are not the same");
    let names = run(tool("isoinfo").args(["-R", "-f", "-i"]).arg(iso()));
    let names: BTreeSet<&str> = names.lines().collect();
    for path in medium().files.keys() {
        assert!(names.contains(format!("/imgbuild/{path}").as_str()), "no {path} in {names:?}");
    }
    assert_eq!(fs::metadata(iso()).unwrap().permissions().mode() & 0o777, 0o600, "it holds secrets");
}

#[test]
fn built_lab_every_file_of_the_iso_is_what_its_index_says() {
    for (path, file) in medium().files {
        let on_iso = tree().join("imgbuild").join(&path);
        assert_eq!((fs::metadata(&on_iso).unwrap().len(), sha256(&on_iso)), (file.size, file.sha256), "{path}");
    }
    let index = sha256(&tree().join("imgbuild/medium.json"));
    for entry in ["auto", "install-master-1", "rescue"] {
        let text = String::from_utf8(esp_file(&format!("loader/entries/imgbuild-{entry}.conf"))).unwrap();
        assert!(text.contains(&format!("imgbuild.medium={index} ")), "{text}");
    }
}

#[test]
fn built_lab_the_isos_esp_boots_the_same_kernel_with_an_initramfs_that_sees_networks() {
    run(tool("fsck.vfat").args(["-n", "-v"]).arg(esp()));
    assert!(esp_file("imgbuild/vmlinuz") == read_fat(&lab().image, "ESP", "imgbuild/a/vmlinuz"));
    assert!(esp_file("EFI/BOOT/BOOTX64.EFI") == read_fat(&lab().image, "ESP", "EFI/BOOT/BOOTX64.EFI"));
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let (packed, plain) = (scratch.path().join("initramfs.cpio.zst"), scratch.path().join("initramfs.cpio"));
    fs::write(&packed, esp_file("imgbuild/initramfs.cpio.zst")).unwrap();
    run(tool("zstd").args(["--quiet", "--decompress", "-o"]).arg(&plain).arg(&packed));
    let names = run(tool("cpio").args(["--extract", "--list", "--quiet", "--file"]).arg(&plain));
    let names: BTreeSet<&str> = names.lines().collect();
    for module in
        ["virtio_net", "e1000e", "igb", "ixgbe", "i40e", "tg3", "r8169", "isofs", "sr_mod", "cdrom", "usb-storage"]
    {
        let file = format!("lib/modules/{}.ko", module.replace('-', "_"));
        assert!(names.contains(file.as_str()), "no {module} in {names:?}");
    }
    assert!(names.contains("init"));
}

/// The pieces make the very disk that `--output disk` does, but for what is empty there.
#[test]
fn built_lab_a_disk_installed_from_the_iso_is_the_disk_image() {
    let medium = medium();
    let [node] = &medium.nodes[..] else { panic!("the lab has one node") };
    let target = folder().join("installed.img");
    let file = File::create(&target).unwrap();
    file.set_len(node.disk_size).unwrap();
    for piece in &node.pieces {
        let from = File::open(tree().join("imgbuild").join(&piece.file)).unwrap();
        let mut bytes = vec![0; usize::try_from(piece.len).unwrap()];
        from.read_exact_at(&mut bytes, piece.offset).unwrap();
        file.write_all_at(&bytes, piece.at).unwrap();
    }
    let verdict = run(tool("sgdisk").arg("-v").arg(&target));
    assert!(verdict.contains("No problems found"), "{verdict}");
    assert_eq!(contents(&target), contents(&lab().image));
    fs::remove_file(target).unwrap();
}

#[test]
fn built_lab_the_iso_is_bit_identical_and_inspect_knows_it() {
    let again = build("iso-again", "1");
    run(tool("cmp").args([iso(), &again]));
    fs::remove_file(again).unwrap();
    let outcome = Outcome::of(Command::new(binary()).arg("inspect").arg(iso()));
    outcome.succeeds();
    for part in ["master-1", "imgbuild/medium.json", "imgbuild.install=auto"] {
        assert!(outcome.stdout.contains(part), "no {part} in\n{outcome}");
    }
    assert!(!outcome.stdout.contains("PRIVATE KEY"), "secrets are not for terminals");
}

// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::inputs::deb::archive;
use crate::store::Store;

/// A member of a tar archive: path, type, content or link target, mode.
type Member<'a> = (&'a str, tar::EntryType, &'a str);

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIR: tar::EntryType = tar::EntryType::Directory;
const SYMLINK: tar::EntryType = tar::EntryType::Symlink;
const LINK: tar::EntryType = tar::EntryType::Link;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn layer(store: &Store, members: &[Member<'_>]) -> Archive {
    archive::unpack_layer(store, &tar_of(members)[..]).unwrap()
}

fn tar_of(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, text) in members {
        let mut header = tar::Header::new_ustar();
        // As they are: the crate's own setters refuse what is tested here.
        header.as_ustar_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_mode(if *kind == DIR { 0o755 } else { 0o640 });
        let is_link = [SYMLINK, LINK].contains(kind);
        if is_link {
            header.as_ustar_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let content = if is_link { "" } else { text };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn text(store: &Store, tree: &FileTree, path: &str) -> Option<String> {
    tree.text(store, path).unwrap()
}

#[test]
fn a_system_is_merged_and_sloppy_links_are_taken_as_they_work() {
    let (_dir, store) = store();
    let tree = system(&[layer(
        &store,
        &[
            ("./", DIR, ""),
            ("./bin/sh", FILE, "sh"),
            ("/usr/lib64/libx.so.1", FILE, "lib"),
            ("lib64/libx.so", SYMLINK, "../../../usr/lib64/libx.so.1"),
            ("usr/bin/again", LINK, "bin/sh"),
            ("usr/sbin", SYMLINK, "bin"),
            ("usr/sbin/mount", FILE, "mount"),
            ("usr/bin/mount", FILE, "newer"),
        ],
    )])
    .unwrap();
    assert_eq!(text(&store, &tree, "bin/sh").unwrap(), "sh");
    assert_eq!(text(&store, &tree, "usr/bin/again").unwrap(), "sh");
    assert_eq!(text(&store, &tree, "lib64/libx.so").unwrap(), "lib");
    assert_eq!(
        text(&store, &tree, "sbin/mount").unwrap(),
        "newer",
        "through the vendor's link, and the last one counts"
    );
    assert_eq!(tree.get("usr/sbin").unwrap().kind, Kind::Symlink("bin".into()));
}

#[test]
fn layers_hide_and_replace_what_lies_below() {
    let (_dir, store) = store();
    let lower = [
        ("a/one", FILE, "1"),
        ("a/two", FILE, "2"),
        ("b/old", FILE, "old"),
        ("b/sub/old", FILE, "old"),
        ("kept", LINK, "a/one"),
        ("other", LINK, "a/two"),
        ("dir/x", FILE, "x"),
        ("lib/gone", FILE, "gone"),
    ];
    let upper = [
        ("b/new", FILE, "new"),
        ("b/.wh..wh..opq", FILE, ""),
        ("a/.wh.one", FILE, ""),
        ("a/two", FILE, "second"),
        ("dir", FILE, "now a file"),
        ("usr/lib/.wh.gone", FILE, ""),
    ];
    let tree = system(&[layer(&store, &lower), layer(&store, &upper)]).unwrap();
    let read = |path| text(&store, &tree, path);
    assert_eq!((read("a/one"), read("kept").as_deref()), (None, Some("1")), "the file lives on under its other name");
    assert_eq!((read("a/two").as_deref(), read("other").as_deref()), (Some("second"), Some("2")));
    assert_eq!((read("b/old"), read("b/sub/old"), read("b/new").as_deref()), (None, None, Some("new")));
    assert_eq!(read("dir").as_deref(), Some("now a file"));
    assert!(tree.get("usr/lib/gone").is_none());
    assert!(!tree.iter().any(|(path, _)| path.contains(".wh.")));
}

#[test]
fn no_path_leads_out() {
    let (_dir, store) = store();
    for bad in ["../etc/passwd", "a/../../b"] {
        let error = archive::unpack_layer(&store, &tar_of(&[(bad, FILE, "x")])[..]).unwrap_err();
        assert!(format!("{error:#}").contains("leads out of the archive"), "{error:#}");
    }
    let nothing = layer(&store, &[("a", LINK, "b")]);
    assert!(format!("{:#}", system(&[nothing]).unwrap_err()).contains("/a is a hard link to /b"));
    let hides = layer(&store, &[(".wh.", FILE, "")]);
    assert!(format!("{:#}", system(&[hides]).unwrap_err()).contains("hides the whole root"));
}

#[test]
fn what_is_of_one_machine_goes() {
    let (_dir, store) = store();
    let gone = [
        "etc/machine-id",
        "etc/fstab",
        "etc/shadow",
        "etc/ssh/ssh_host_ed25519_key",
        "etc/sysconfig/network-scripts/ifcfg-eth0",
        "etc/NetworkManager/system-connections/lan.nmconnection",
        "root/.ssh/authorized_keys",
        "root/anaconda-ks.cfg",
        "home/admin/secret",
        "var/log/messages",
        "var/cache/dnf/x.rpm",
        "var/lib/etcd/member/wal",
        "var/lib/kubelet/config.yaml",
        "usr/share/man/man1/ls.1.gz",
        "tmp/x",
    ];
    let stays = [
        "etc/passwd",
        "etc/sysconfig/network-scripts/ifup",
        "etc/ssh/sshd_config",
        "root/.bashrc",
        "usr/share/licenses/bash/COPYING",
        "var/lib/rpm/rpmdb.sqlite",
    ];
    let mut members: Vec<Member<'_>> = gone.iter().chain(&stays).map(|path| (*path, FILE, "x")).collect();
    members.extend([
        ("var/log/audit", DIR, ""),
        ("usr/bin/dead", SYMLINK, "nowhere"),
        ("usr/bin/twice", LINK, "var/log/messages"),
        ("dev/null", tar::EntryType::Char, ""),
    ]);
    // A hard link comes after its file.
    let mut tree = system(&[layer(&store, &members)]).unwrap();
    clean(&mut tree);
    for path in gone.iter().chain(&["usr/bin/dead", "dev/null"]) {
        assert!(tree.get(path).is_none(), "{path} is still there");
    }
    for path in stays.iter().chain(&["var/log/audit", "var/cache/dnf", "home", "dev"]) {
        assert!(tree.get(path).is_some(), "{path} is gone");
    }
    assert_eq!(text(&store, &tree, "usr/bin/twice").unwrap(), "x");
}

#[test]
fn one_kernel_with_modules_is_kept() {
    let (_dir, store) = store();
    let module = |release: &str| format!("usr/lib/modules/{release}/kernel/ext4.ko.xz");
    let (one, two, old) = (module("6.6.0-1.ky11"), module("6.6.0-2.ky11"), module("6.6.0-0.ky11"));
    let base: Vec<Member<'_>> = vec![
        (&one, FILE, "m"),
        (&old, FILE, "m"),
        ("boot/vmlinuz-0-rescue-abc", FILE, "k"),
        ("boot/vmlinuz-6.6.0-1.ky11", SYMLINK, "../usr/lib/modules/6.6.0-1.ky11/vmlinuz"),
        ("usr/lib/modules/6.6.0-1.ky11/vmlinuz", FILE, "k"),
        ("usr/lib/modules/kabi/x", FILE, "k"),
        ("boot/config-6.6.0-1.ky11", FILE, "c"),
        ("boot/initramfs-6.6.0-1.ky11.img", FILE, "i"),
        ("boot/efi/EFI/kylin/grub.cfg", FILE, "g"),
    ];
    let mut tree = system(&[layer(&store, &base)]).unwrap();
    let several = {
        let mut more = base.clone();
        more.extend([(&*two, FILE, "m"), ("boot/vmlinuz-6.6.0-2.ky11", FILE, "k")]);
        system(&[layer(&store, &more)]).unwrap()
    };
    assert_eq!(keep_one_kernel(&mut tree, None).unwrap(), "6.6.0-1.ky11");
    let left: Vec<&str> = tree.below("boot").map(|(path, _)| path).collect();
    assert_eq!(left, ["boot/config-6.6.0-1.ky11", "boot/vmlinuz-6.6.0-1.ky11"]);
    assert_eq!(text(&store, &tree, "boot/vmlinuz-6.6.0-1.ky11").unwrap(), "k");
    assert_eq!(super::super::modules::versions(&tree), ["6.6.0-1.ky11"]);

    let error = keep_one_kernel(&mut several.clone(), None).unwrap_err();
    assert_eq!(error.to_string(), "the root filesystem has several kernels: 6.6.0-1.ky11, 6.6.0-2.ky11");
    assert!(crate::error::hint(&error).unwrap().contains("kernel = "));
    assert_eq!(keep_one_kernel(&mut several.clone(), Some("6.6.0-2.ky11")).unwrap(), "6.6.0-2.ky11");
    let error = keep_one_kernel(&mut several.clone(), Some("5.10")).unwrap_err();
    assert!(crate::error::hint(&error).unwrap().contains("6.6.0-1.ky11, 6.6.0-2.ky11"));
    let mut none = system(&[layer(&store, &[(&one, FILE, "m")])]).unwrap();
    assert!(keep_one_kernel(&mut none, None).unwrap_err().to_string().contains("which are for: 6.6.0-1.ky11"));
}

/// A path as archives may write it, whiteouts included.
const PATHS: &str = "(/|\\./)?(a|b|usr|lib|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq)(/(a|lib|b|\\.wh\\.b)){0,2}";

proptest! {
    /// Whatever layers say, there is a tree or an error; and a tree's hard links lead to files.
    #[test]
    fn any_layers(
        members in prop::collection::vec((PATHS, 0..4usize, "(/|\\.\\./)?(a|b|usr/lib|lib)(/a)?"), 0..12),
    ) {
        let (_dir, store) = store();
        let kinds = [FILE, DIR, SYMLINK, LINK];
        let members: Vec<Member<'_>> = members
            .iter()
            .map(|(path, kind, target)| (path.as_str(), kinds[*kind], target.as_str()))
            // Hard links that climb are refused when the archive is read.
            .filter(|(_, kind, target)| *kind != LINK || !target.starts_with('.'))
            .collect();
        let (lower, upper) = members.split_at(members.len() / 2);
        if let Ok(mut tree) = system(&[layer(&store, lower), layer(&store, upper)]) {
            clean(&mut tree);
            for (path, entry) in tree.iter() {
                if let Kind::HardLink(target) = &entry.kind {
                    prop_assert!(matches!(tree.get(target), Some(Entry { kind: Kind::File(_), .. })), "{}", path);
                }
            }
        }
    }
}

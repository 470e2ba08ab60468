// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;

use super::format::{SUPER_SIZE, Superblock};
use super::read::{NodeKind, Reader};
use super::*;
use crate::image::testing::{store, text, tool, tool_ok};
use crate::tree::{Content, Entry, Kind};

const EPOCH: u32 = 1_600_000_000;

fn options() -> Options {
    Options { block_size: 4096, level: 3, epoch: EPOCH, jobs: 2 }
}

fn image(tree: &FileTree, store: &Store, options: &Options) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    write(tree, store, options, &mut out).unwrap();
    out.into_inner()
}

/// Bytes that compress a little and differ by seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state & 0x1f) as u8 + b'A'
        })
        .collect()
}

/// A tree with one of everything.
fn sample() -> FileTree {
    let mut tree = FileTree::new();
    let mut put = |path: &str, entry: Entry| tree.insert(path, entry).unwrap();
    put("bin/tool", Entry { xattrs: capability(), ..Entry::file(noise(1, 9000), 0o4755) });
    put("bin/again", Entry::new(Kind::HardLink("bin/tool".into()), 0));
    put("a-first", Entry::new(Kind::HardLink("bin/tool".into()), 0));
    put("copy", Entry::file(noise(1, 9000), 0o644));
    put("small", Entry { uid: 1000, gid: 5, mtime: u32::MAX, ..Entry::file(*b"hello\n", 0o600) });
    put("small-too", Entry::file(*b"hello\n", 0o644));
    put("empty", Entry { mtime: 7, ..Entry::file(*b"", 0o644) });
    put("holes", Entry::file([noise(2, 4096), vec![0; 12_288], noise(3, 10)].concat(), 0o644));
    put("zeros", Entry::file(vec![0; 8192], 0o644));
    put("link", Entry { xattrs: user_note(), ..Entry::symlink("bin/tool") });
    put("dev/null", Entry::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666));
    put("dev/sda", Entry::new(Kind::BlockDevice { major: 8, minor: 16 }, 0o660));
    put("dev/nvme", Entry::new(Kind::BlockDevice { major: 259, minor: 70_000 }, 0o660));
    put("dev/pipe", Entry { xattrs: user_note(), ..Entry::new(Kind::Fifo, 0o600) });
    put("tmp", Entry { xattrs: user_note(), ..Entry::dir(0o1777) });
    for i in 0..3000 {
        put(&format!("many/a-name-of-some-length-{i:05}"), Entry::file(i.to_string().into_bytes(), 0o644));
        put(&format!("many.d/{i}"), Entry::dir(0o755));
    }
    tree
}

fn capability() -> BTreeMap<String, Vec<u8>> {
    // cap_net_raw=ep, VFS_CAP_REVISION_2.
    let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    BTreeMap::from([("security.capability".to_owned(), value)])
}

fn user_note() -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([("user.note".to_owned(), b"x".to_vec()), ("trusted.t".to_owned(), vec![])])
}

/// What the reader should find: hard links resolved, times clamped.
fn expected(tree: &FileTree) -> BTreeMap<String, Entry> {
    let resolve = |entry: &Entry| match &entry.kind {
        Kind::HardLink(target) => tree.get(target).unwrap().clone(),
        _ => entry.clone(),
    };
    tree.iter()
        .map(|(path, entry)| {
            let mut entry = resolve(entry);
            entry.mtime = entry.mtime.min(EPOCH);
            (path.to_owned(), entry)
        })
        .collect()
}

fn found(image: &[u8]) -> BTreeMap<String, Entry> {
    let mut reader = Reader::open(Cursor::new(image), 0).unwrap();
    let mut out = BTreeMap::new();
    let device = |d: u32| (d >> 8 & 0xfff, d & 0xff | d >> 12 & 0xf_ff00);
    reader
        .walk(&mut |reader, path, node| {
            let kind = match &node.kind {
                NodeKind::Dir => Kind::Dir,
                NodeKind::File(file) => Kind::File(Content::Bytes(reader.read(file, 1 << 30)?.into())),
                NodeKind::Symlink(target) => Kind::Symlink(String::from_utf8(target.clone())?),
                NodeKind::BlockDevice(d) => Kind::BlockDevice { major: device(*d).0, minor: device(*d).1 },
                NodeKind::CharDevice(d) => Kind::CharDevice { major: device(*d).0, minor: device(*d).1 },
                NodeKind::Fifo => Kind::Fifo,
                NodeKind::Socket => panic!("a socket"),
            };
            let entry = Entry {
                kind,
                mode: node.mode,
                uid: node.uid,
                gid: node.gid,
                mtime: node.mtime,
                xattrs: node.xattrs.clone(),
            };
            out.insert(path.to_owned(), entry);
            Ok(())
        })
        .unwrap();
    out
}

#[test]
fn what_is_written_is_read() {
    let (_dir, store) = store();
    let tree = sample();
    let image = image(&tree, &store, &options());
    assert_eq!(found(&image), expected(&tree));
    let mut reader = Reader::open(Cursor::new(&image), 0).unwrap();
    let number = |reader: &mut Reader<_>, path| reader.find(path).unwrap().unwrap();
    let tool = number(&mut reader, "bin/tool");
    assert_eq!((tool.links, tool.number), (3, number(&mut reader, "a-first").number));
    assert_eq!(number(&mut reader, "many.d").links, 3002);
}

#[test]
fn claims_beyond_the_image_are_refused() {
    let (_dir, store) = store();
    let good = image(&sample(), &store, &options());
    let superblock = Superblock::decode(&good).unwrap();
    let problem = |change: &dyn Fn(&mut Superblock)| {
        let (mut changed, mut bytes) = (superblock.clone(), good.clone());
        change(&mut changed);
        bytes[..SUPER_SIZE].copy_from_slice(&changed.encode());
        let mut reader = match Reader::open(Cursor::new(bytes), 0) {
            Ok(reader) => reader,
            Err(error) => return format!("{error:#}"),
        };
        format!("{:#}", reader.walk(&mut |_, _, _| Ok(())).unwrap_err())
    };
    let refused = |change: &dyn Fn(&mut Superblock), part: &str| {
        let found = problem(change);
        assert!(found.contains(part), "`{part}` wanted: {found}");
    };
    refused(&|block| block.bytes_used = u64::MAX, "cut short");
    refused(&|block| block.fragments = u32::MAX, "claims 4294967295 fragment blocks");
    refused(&|block| block.inodes = 1, "far more names than");
}

#[test]
fn equal_files_are_stored_once() {
    let (_dir, store) = store();
    let mut out = Cursor::new(Vec::new());
    let summary = write(&sample(), &store, &options(), &mut out).unwrap();
    assert_eq!(summary.duplicate_bytes, 9000 + 6);
}

#[test]
fn unsquashfs_finds_what_was_written() {
    let (dir, store) = store();
    let tree = sample();
    let file = dir.path().join("image");
    std::fs::write(&file, image(&tree, &store, &options())).unwrap();
    let list = tool_ok("unsquashfs", "squashfs-tools", &["-lln", text(&file)]);
    assert_eq!(list.lines().filter(|line| line.contains(" squashfs-root")).count(), tree.len());
    for line in [
        "-rwsr-xr-x 0/0              9000 1970-01-01 00:00 squashfs-root/bin/again",
        "-rw------- 1000/5              6 2020-09-13 12:26 squashfs-root/small",
        "-rw-r--r-- 0/0                 0 1970-01-01 00:00 squashfs-root/empty",
        "crw-rw-rw- 0/0             1,  3 1970-01-01 00:00 squashfs-root/dev/null",
        "brw-rw---- 0/0             8, 16 1970-01-01 00:00 squashfs-root/dev/sda",
        "prw------- 0/0                 0 1970-01-01 00:00 squashfs-root/dev/pipe",
        "lrwxrwxrwx 0/0                 8 1970-01-01 00:00 squashfs-root/link -> bin/tool",
        "drwxr-xr-x 0/0            105159 1970-01-01 00:00 squashfs-root/many",
    ] {
        let shape: Vec<&str> = line.split_whitespace().collect();
        let there = list.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == shape);
        let name = shape[5..].join(" ");
        let like: Vec<&str> = list.lines().filter(|l| l.ends_with(&name)).collect();
        assert!(there, "wanted {line}\nfound {like:?}");
    }
    let out = dir.path().join("out");
    let files = ["bin", "copy", "holes", "zeros", "small", "many", "a-first"];
    let mut args = vec!["-no-progress", "-no-xattrs", "-d", text(&out), text(&file)];
    args.extend(files);
    tool_ok("unsquashfs", "squashfs-tools", &args);
    for (path, entry) in expected(&tree) {
        if let Kind::File(content) = &entry.kind
            && files.contains(&path.split('/').next().unwrap())
        {
            assert_eq!(std::fs::read(out.join(&path)).unwrap(), content.read(&store).unwrap(), "{path}");
        }
    }
}

#[test]
fn sqfs2tar_keeps_attributes_and_links() {
    let (dir, store) = store();
    let file = dir.path().join("image");
    std::fs::write(&file, image(&sample(), &store, &options())).unwrap();
    let output = tool("sqfs2tar", "squashfs-tools-ng", &[text(&file)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut capable, mut links, mut entries) = (0, 0, 0);
    for entry in tar::Archive::new(&output.stdout[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        entries += 1;
        // unsquashfs would print this one wrong: it cuts minor numbers to 8 bits.
        if entry.path().unwrap() == std::path::Path::new("dev/nvme") {
            let header = entry.header();
            assert_eq!((header.device_major().unwrap(), header.device_minor().unwrap()), (Some(259), Some(70_000)));
        }
        links += u32::from(entry.header().entry_type().is_hard_link());
        for field in entry.pax_extensions().unwrap().into_iter().flatten() {
            let field = field.unwrap();
            if field.key_bytes() == b"SCHILY.xattr.security.capability" {
                assert_eq!(field.value_bytes(), capability()["security.capability"]);
                capable += 1;
            }
        }
    }
    assert_eq!((capable, links, entries), (1, 2, sample().len() - 1));
}

#[test]
fn threads_and_cache_do_not_show_in_the_image() {
    let (_dir, store) = store();
    let tree = sample();
    let once = Options { jobs: 1, ..options() };
    let reference = image(&tree, &store, &once);
    assert_eq!(image(&tree, &store, &Options { jobs: 7, ..options() }), reference);
    let first = pack(&tree, &store, &once).unwrap();
    assert_eq!(std::fs::read(store.path(&first.object)).unwrap(), reference);
    assert_eq!(first.summary.copied_blocks, 0);
    let second = pack(&tree, &store, &options()).unwrap();
    assert_eq!((second.object, second.summary.packed_blocks), (first.object, 0));

    let mut changed = tree.clone();
    changed.insert("many/a-name-of-some-length-00007x", Entry::file(*b"new", 0o644)).unwrap();
    let warm = pack(&changed, &store, &options()).unwrap();
    assert_eq!(std::fs::read(store.path(&warm.object)).unwrap(), image(&changed, &store, &once));
    assert!(warm.summary.copied_blocks > warm.summary.packed_blocks, "{:?}", warm.summary);
}

#[test]
fn what_squashfs_cannot_hold_is_refused() {
    let (_dir, store) = store();
    let refused = |path: &str, entry: Entry| {
        let mut tree = FileTree::new();
        tree.insert(path, entry).unwrap();
        write(&tree, &store, &options(), &mut Cursor::new(Vec::new())).unwrap_err().to_string()
    };
    let acl = BTreeMap::from([("system.posix_acl_access".to_owned(), vec![2])]);
    assert_eq!(
        refused("log", Entry { xattrs: acl, ..Entry::dir(0o755) }),
        "`log` has the attribute `system.posix_acl_access`: squashfs keeps only those in user., trusted. and security."
    );
    assert_eq!(
        refused("a", Entry::new(Kind::HardLink("b".into()), 0)),
        "hard link `a` points to `b`, which is not there"
    );
    assert_eq!(refused("n", Entry::new(Kind::CharDevice { major: 4096, minor: 0 }, 0)), "writing device `n`");
    let gone = Content::Slice { object: Digest::of(b"gone"), offset: 0, len: 3 };
    assert!(refused("f", Entry::new(Kind::File(gone), 0)).contains(&Digest::of(b"gone").to_string()));
}

#[test]
fn a_slice_longer_than_its_object_is_an_error() {
    let (_dir, store) = store();
    let object = store.put_bytes(&noise(9, 5000)).unwrap();
    let mut tree = FileTree::new();
    tree.insert("f", Entry::new(Kind::File(Content::Slice { object, offset: 10, len: 40_000 }), 0o644)).unwrap();
    let error = write(&tree, &store, &options(), &mut Cursor::new(Vec::new())).unwrap_err();
    assert!(format!("{error:#}").contains("of store object"), "{error:#}");
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let content = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        (0u64..4, 0usize..14_000).prop_map(|(seed, len)| noise(seed, len)),
        (0usize..14_000).prop_map(|len| vec![0; len]),
    ];
    let kind = prop_oneof![
        6 => content.prop_map(|bytes| Kind::File(Content::Bytes(bytes.into()))),
        2 => Just(Kind::Dir),
        1 => "[a-z/.]{1,60}".prop_map(Kind::Symlink),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        1 => Just(Kind::Fifo),
    ];
    let xattrs = proptest::collection::btree_map(
        "(user|security|trusted)\\.[a-z]{1,8}",
        proptest::collection::vec(any::<u8>(), 0..30),
        0..3,
    );
    (kind, 0u16..0o10000, prop_oneof![Just(0), any::<u32>()], 0u32..3, 0..=EPOCH, xattrs)
        .prop_map(|(kind, mode, uid, gid, mtime, xattrs)| Entry { kind, mode, uid, gid, mtime, xattrs })
}

fn any_tree() -> impl Strategy<Value = FileTree> {
    let name = "([a-c]|[a-z.\\-é]{3,12}|[A-Z]{250})";
    let path = proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    proptest::collection::vec((path, any_entry(), any::<bool>()), 0..60).prop_map(|list| {
        let mut tree = FileTree::new();
        let mut last_file: Option<String> = None;
        for (path, mut entry, link) in list {
            if tree.get(&path).is_some() {
                continue;
            }
            if let (true, Some(target)) = (link, &last_file) {
                entry.kind = Kind::HardLink(target.clone());
            }
            let before = tree.clone();
            if tree.insert(&path, entry).is_err() {
                tree = before;
            } else if matches!(tree.get(&path), Some(Entry { kind: Kind::File(_), .. })) {
                last_file = Some(path);
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_survives(tree in any_tree()) {
        let (_dir, store) = store();
        prop_assert_eq!(found(&image(&tree, &store, &options())), expected(&tree));
    }

    #[test]
    fn damaged_images_never_panic(
        tree in any_tree(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
        in_super in any::<bool>(),
    ) {
        let (_dir, store) = store();
        let mut bytes = image(&tree, &store, &options());
        for (index, value) in damage {
            let at = index.index(if in_super { 96 } else { bytes.len() });
            bytes[at] = value;
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(mut reader) = Reader::open(Cursor::new(&bytes), 0) {
            let _ = reader.walk(&mut |reader, _, node| {
                if let NodeKind::File(file) = &node.kind {
                    let _ = reader.read(file, 1 << 20);
                }
                Ok(())
            });
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut image = [0x68, 0x73, 0x71, 0x73].to_vec();
        image.extend(bytes);
        let _ = Reader::open(Cursor::new(&image), 0).and_then(|mut reader| reader.root());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Squashfs images.

use std::collections::BTreeMap;
use std::io::Cursor;

use imgbuild::image::squashfs::read::{NodeKind, Reader};
use imgbuild::image::squashfs::{Options, write};
use imgbuild::tree::{Entry, FileTree, Kind};

use crate::store;

/// Bytes of files that are read: sparse ones are large.
const LIMIT: u64 = 1 << 20;

/// Walks through an image and reads its files.
pub fn run(data: &[u8]) {
    let Ok(mut reader) = Reader::open(Cursor::new(data), 0) else { return };
    let (mut left, mut first) = (LIMIT, Vec::new());
    let _ = reader.walk(&mut |reader, path, node| {
        assert!(path.is_empty() || path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path}");
        if first.len() < 4 {
            first.push(path.to_owned());
        }
        if let NodeKind::File(file) = &node.kind {
            if let Ok(bytes) = reader.read(file, left) {
                assert_eq!(bytes.len() as u64, file.len);
                left -= file.len;
            }
        }
        Ok(())
    });
    for path in first {
        let _ = reader.find(&path);
    }
}

/// A small tree with one of everything.
pub fn tree() -> FileTree {
    let mut tree = FileTree::new();
    let mut add = |path: &str, entry: Entry| tree.insert(path, entry).expect("a plain path");
    add("payload.json", Entry::file(*b"{}", 0o644));
    add("bin/tool", Entry::file(vec![7; 9000], 0o755));
    add("bin/link", Entry::new(Kind::HardLink("bin/tool".to_owned()), 0o755));
    add("bin/sparse", Entry::file(vec![0; 20_000], 0o644));
    add("etc/symlink", Entry::symlink("../bin/tool"));
    add("dev/a", Entry::new(Kind::CharDevice { major: 4, minor: 300 }, 0o600));
    add("dev/b", Entry::new(Kind::BlockDevice { major: 8, minor: 1 }, 0o600));
    add("dev/c", Entry::new(Kind::Fifo, 0o600));
    let mut capable = Entry::file(*b"x", 0o755);
    capable.xattrs = BTreeMap::from([("security.capability".to_owned(), vec![1; 20]), ("user.a".to_owned(), vec![2])]);
    add("bin/capable", capable);
    tree
}

/// An image of it.
pub fn image() -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let options = Options { block_size: 4096, level: 3, epoch: 1_700_000_000, jobs: 1 };
    write(&tree(), store(), &options, &mut out).expect("writing an image");
    out.into_inner()
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut small = Cursor::new(Vec::new());
    let options = Options { block_size: 4096, level: 1, epoch: 0, jobs: 1 };
    write(&FileTree::new(), store(), &options, &mut small).expect("writing an image");
    vec![image(), small.into_inner()]
}

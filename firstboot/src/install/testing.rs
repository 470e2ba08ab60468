// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small medium for tests, and consoles that keep or swallow what is said.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::rc::Rc;

use profiles::medium::{Machine, Medium, MediumFile, MediumNode, Piece, Range, SCHEMA, Target};
use profiles::node::Architecture;

use crate::console::Console;
use crate::digest::sha256;

/// The cluster of every test.
pub const CLUSTER_ID: &str = "0123456789abcdef0123456789abcdef";
/// Size of every node's image.
pub const IMAGE: u64 = 4 << 20;
/// GUID of the first node's disk.
pub const GUID: &str = "0c12d0e5-1111-4222-8333-444455556660";

/// Says nothing.
pub fn quiet() -> Console {
    Console::new(Vec::new(), Box::new(io::sink()))
}

/// A console, and what was said on it.
pub fn recorded() -> (Console, impl Fn() -> Vec<String>) {
    #[derive(Clone, Default)]
    struct Shared(Rc<RefCell<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let shared = Shared::default();
    let console = Console::new(Vec::new(), Box::new(shared.clone()));
    console.set_who("t");
    let lines = move || {
        let text = String::from_utf8(shared.0.borrow().clone()).unwrap();
        text.lines().map(|line| line.trim_start_matches("firstboot: t: ").to_owned()).collect()
    };
    (console, lines)
}

/// Bytes that look like nothing.
fn noise(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed | 1).collect()
}

/// The files of the medium: an image of 4 MiB has its table from the node's own file, a root, a part of the shared
/// blocks, and the table's copy at its end.
pub fn contents(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::from([
        ("root.squashfs".to_owned(), noise(700_001, 2)),
        ("payload.squashfs".to_owned(), noise(5000, 3)),
        ("blocks.bin".to_owned(), noise(200_000, 4)),
    ]);
    for (index, name) in names.iter().enumerate() {
        files.insert(format!("nodes/{name}.bin"), table(index).concat());
    }
    files
}

/// The first 34 and the last 33 sectors of a disk with an empty table.
fn table(index: usize) -> [Vec<u8>; 2] {
    let mut disk = io::Cursor::new(vec![0; IMAGE as usize]);
    gptman::GPT::write_protective_mbr_into(&mut disk, 512).unwrap();
    let mut gpt = gptman::GPT::new_from(&mut disk, 512, guid(index)).unwrap();
    gpt.write_into(&mut disk).unwrap();
    let bytes = disk.into_inner();
    [bytes[..34 * 512].to_vec(), bytes[bytes.len() - 33 * 512..].to_vec()]
}

fn guid(index: usize) -> [u8; 16] {
    let mut guid = [0xe5, 0xd0, 0x12, 0x0c, 0x11, 0x11, 0x22, 0x42, 0x83, 0x33, 0x44, 0x44, 0x55, 0x55, 0x66, 0x60];
    guid[15] += index as u8;
    guid
}

/// The index of a medium with these nodes.
pub fn medium(names: &[&str]) -> Medium {
    let contents = contents(names);
    let nodes = names.iter().enumerate().map(|(index, name)| {
        let own = format!("nodes/{name}.bin");
        let piece = |file: &str, offset, at, len| Piece { file: file.to_owned(), offset, at, len };
        let backup = IMAGE - 33 * 512;
        MediumNode {
            name: (*name).to_owned(),
            disk_guid: crate::init::gpt::guid_text(guid(index)),
            disk_size: IMAGE,
            root: "root.squashfs".into(),
            payload: "payload.squashfs".into(),
            machine: Machine::default(),
            target: Target::default(),
            pieces: vec![
                piece(&own, 0, 0, 34 * 512),
                piece("root.squashfs", 0, 1 << 20, 700_001),
                piece("blocks.bin", 65_536, 2 << 20, 65_536),
                piece("blocks.bin", 65_536, (2 << 20) + 65_536, 65_536),
                piece(&own, 34 * 512, backup, 33 * 512),
            ],
            zero: vec![Range { at: 3 << 20, len: 100_000 }],
        }
    });
    Medium {
        schema: SCHEMA,
        cluster: "lab".into(),
        cluster_id: CLUSTER_ID.into(),
        architecture: if cfg!(target_arch = "x86_64") { Architecture::Amd64 } else { Architecture::Loong64 },
        files: contents
            .iter()
            .map(|(path, bytes)| (path.clone(), MediumFile { size: bytes.len() as u64, sha256: sha256(bytes) }))
            .collect(),
        nodes: nodes.collect(),
    }
}

/// The medium as files.
pub fn written(names: &[&str]) -> (tempfile::TempDir, Medium) {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in contents(names) {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    (dir, medium(names))
}

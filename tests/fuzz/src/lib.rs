// SPDX-License-Identifier: MIT OR Apache-2.0

//! What each target in `targets/` does with its input, and the inputs it begins with. A target panics where a property
//! does not hold; that nothing panics, overflows, takes long or much memory is what libFuzzer sees to.

use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use imgbuild::store::Store;

pub mod archive;
pub mod cluster;
pub mod disk;
pub mod documents;
pub mod elf;
pub mod images;
pub mod network;
pub mod openpgp;
pub mod repository;
pub mod rpm;
pub mod squashfs;
pub mod text;
pub mod yaml;

/// Names the folder that a target writes its seeds to, instead of fuzzing.
const SEEDS: &str = "IMGBUILD_FUZZ_SEEDS";

/// Runs before the first input.
pub fn init(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(SEEDS) else { return };
    let folder = Path::new(&folder);
    fs::create_dir_all(folder).expect("making the folder of seeds");
    for (number, seed) in seeds().iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:02}")), seed).expect("writing a seed");
    }
    std::process::exit(0);
}

/// What separates the parts of an input that has several.
pub const SEPARATOR: &[u8] = b"\n====\n";

/// The parts of an input.
pub fn parts(data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        parts.push(&rest[..at]);
        rest = &rest[at + SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}

/// A store that lasts as long as the process.
pub fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("making a folder").keep();
        Store::open(&folder).expect("opening a store")
    })
}

/// A page of a file that is a hole.
const ZEROS: [u8; 4096] = [0; 4096];

/// A file without a disk, for parsers that want a file or its path.
pub struct MemoryFile(pub File);

impl MemoryFile {
    /// A file of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("making a file");
        let file = File::from(fd);
        file.set_len(bytes.len() as u64).expect("making a file");
        // What is zeros stays a hole. Compared a block at a time: instrumented code is slow with bytes.
        for (number, block) in bytes.chunks(ZEROS.len()).enumerate() {
            if block != &ZEROS[..block.len()] {
                file.write_all_at(block, (number * ZEROS.len()) as u64).expect("writing a file");
            }
        }
        Self(file)
    }

    /// Where it can be opened.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

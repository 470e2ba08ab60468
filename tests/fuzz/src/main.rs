// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every fuzz target in one program: each needs most of the builder, which would be linked and kept once for each.
//! It is the target by whose name it is called: `tests/run-fuzz` makes a link for each.
//!
//! A target is a module. `run` is what it does with an input, and panics where a property does not hold; that nothing
//! panics, overflows, takes long or much memory is what libFuzzer sees to. `seeds` are the inputs it begins with.
#![no_main]

use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use imgbuild::store::Store;

mod archive;
mod cluster;
mod disk;
mod documents;
mod elf;
mod images;
mod network;
mod openpgp;
mod registry;
mod repository;
mod rpm;
mod squashfs;
mod text;
mod yaml;

/// A target.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

/// The targets that these modules are.
macro_rules! targets {
    ($($name:ident)*) => {
        &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*]
    };
}

/// All: `tests/run-fuzz` takes every file beside this one for a target.
const TARGETS: &[Target] = targets![
    archive cluster disk documents elf images network openpgp registry repository rpm squashfs text yaml
];

/// Names the folder that a target writes its seeds to, instead of fuzzing.
const SEEDS: &str = "IMGBUILD_FUZZ_SEEDS";

/// What the chosen target does with an input.
static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: init(), |data: &[u8]| run(data));

/// Runs before the first input: chooses the target.
fn init() {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| name == target.name) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("{} is no fuzz target; call this program {}", name.display(), names.join(", "));
        std::process::exit(1);
    };
    if let Some(folder) = std::env::var_os(SEEDS) {
        write_seeds(target, Path::new(&folder));
        std::process::exit(0);
    }
    RUN.get_or_init(|| target.run);
}

fn run(data: &[u8]) {
    let run = RUN.get().expect("libFuzzer begins with `init`");
    run(data);
}

fn write_seeds(target: &Target, folder: &Path) {
    fs::create_dir_all(folder).expect("making the folder of seeds");
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:02}")), seed).expect("writing a seed");
    }
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files of a medium against their sizes and SHA-256, before a byte of any disk is written. The same pass notes the
//! digest of each piece: what is on the disk later must be that, even if the medium is read differently the next time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use profiles::medium::{Medium, MediumNode, Piece};
use sha2::{Digest, Sha256};

use super::progress::Progress;
use crate::console::Console;
use crate::digest::hex;

/// How much is read at a time.
pub const BUFFER: usize = 4 << 20;

/// Digests of pieces whose files are as the index has them.
#[derive(Debug, Default)]
pub struct Verified(BTreeMap<(String, u64, u64), [u8; 32]>);

impl Verified {
    /// SHA-256 of a piece.
    pub fn of(&self, piece: &Piece) -> Result<[u8; 32]> {
        let key = (piece.file.clone(), piece.offset, piece.len);
        self.0.get(&key).copied().with_context(|| format!("`{}` was not verified", piece.file))
    }
}

/// Files that an installation of `node` reads.
pub fn files_of(node: &MediumNode) -> BTreeSet<&str> {
    node.pieces.iter().map(|piece| piece.file.as_str()).collect()
}

/// Checks `names`, files of `medium` in `dir`, and notes the digests of `pieces`.
pub fn files(
    dir: &Path,
    medium: &Medium,
    names: &BTreeSet<&str>,
    pieces: &[Piece],
    console: &Console,
) -> Result<Verified> {
    let total = names.iter().filter_map(|name| medium.files.get(*name)).map(|file| file.size).sum();
    let mut progress = Progress::new(console, "checking", total);
    let mut verified = Verified::default();
    for name in names {
        let wanted = medium.files.get(*name).with_context(|| format!("the medium's index has no file `{name}`"))?;
        let mut open: Vec<Open> = Vec::new();
        for piece in pieces.iter().filter(|piece| piece.file == *name) {
            if !open.iter().any(|other| (other.offset, other.len) == (piece.offset, piece.len)) {
                open.push(Open { offset: piece.offset, len: piece.len, sha: Sha256::new() });
            }
        }
        let digest = read(&dir.join(name), wanted.size, &mut open, &mut |bytes| progress.add(bytes, name))
            .with_context(|| format!("the medium's file `{name}` cannot be used"))?;
        ensure!(
            hex(&digest) == wanted.sha256,
            "the medium's file `{name}` is corrupt: its SHA-256 is {}, not {}; write the medium again, or use another \
             stick. Nothing was written to any disk",
            hex(&digest),
            wanted.sha256
        );
        verified.0.extend(
            open.into_iter().map(|piece| ((String::from(*name), piece.offset, piece.len), piece.sha.finalize().into())),
        );
    }
    progress.finish("the medium");
    Ok(verified)
}

/// A piece whose digest is being made.
struct Open {
    offset: u64,
    len: u64,
    sha: Sha256,
}

fn read(path: &Path, size: u64, open: &mut [Open], done: &mut dyn FnMut(u64)) -> Result<[u8; 32]> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let found = file.metadata().with_context(|| format!("measuring {}", path.display()))?.len();
    if found != size {
        bail!(
            "it has {found} bytes, not {size}: the medium was not written or not loaded to its end. Booted over the \
             network, the machine may have too little memory for it"
        );
    }
    let mut whole = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let count = file.read(&mut buffer).with_context(|| format!("reading {} at {at}", path.display()))?;
        if count == 0 {
            break;
        }
        let bytes = &buffer[..count];
        whole.update(bytes);
        for piece in open.iter_mut() {
            piece.take(at, bytes);
        }
        at += count as u64;
        done(count as u64);
    }
    ensure!(at == size, "it ends at {at}, not at {size}");
    Ok(whole.finalize().into())
}

impl Open {
    /// Takes its part of `bytes`, which stand at `at` in the file.
    fn take(&mut self, at: u64, bytes: &[u8]) {
        let from = self.offset.max(at);
        let to = self.offset.saturating_add(self.len).min(at + bytes.len() as u64);
        if from < to {
            // Both differences are at most the length of the buffer.
            self.sha.update(&bytes[(from - at) as usize..(to - at) as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::sha256;
    use crate::install::testing::{quiet, written};

    #[test]
    fn a_corrupt_file_is_named() {
        let (dir, medium) = written(&["master-1"]);
        let node = &medium.nodes[0];
        let check = || files(dir.path(), &medium, &files_of(node), &node.pieces, &quiet());
        let verified = check().unwrap();
        for piece in &node.pieces {
            let content = std::fs::read(dir.path().join(&piece.file)).unwrap();
            let part = &content[piece.offset as usize..(piece.offset + piece.len) as usize];
            assert_eq!(hex(&verified.of(piece).unwrap()), sha256(part));
        }
        let path = dir.path().join("root.squashfs");
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() - 1] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let error = format!("{:#}", check().unwrap_err());
        assert!(error.contains("`root.squashfs` is corrupt"), "{error}");
        std::fs::write(&path, &good[1..]).unwrap();
        let error = format!("{:#}", check().unwrap_err());
        assert!(error.contains("`root.squashfs` cannot be used: it has"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", check().unwrap_err()).contains("opening"));
    }

    proptest! {
        #[test]
        fn a_piece_takes_its_bytes_however_the_file_is_cut(
            content in proptest::collection::vec(any::<u8>(), 1..200),
            from in 0usize..200, length in 0usize..200, cut in 1usize..50,
        ) {
            let from = from.min(content.len());
            let end = (from + length).min(content.len());
            let mut piece = Open { offset: from as u64, len: (end - from) as u64, sha: Sha256::new() };
            for (index, part) in content.chunks(cut).enumerate() {
                piece.take((index * cut) as u64, part);
            }
            prop_assert_eq!(hex(&piece.sha.finalize()), sha256(&content[from..end]));
        }
    }
}

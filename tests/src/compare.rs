// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compares files byte by byte, and reads of sparse ones only where there is data.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::cli::files_below;
use crate::disk::partitions;

/// How much is compared at a time.
const BLOCK: u64 = 1 << 20;

/// Where the files below two folders differ first, in words: which file is on one side alone, or in which byte.
pub fn folders(a: &Path, b: &Path) -> Option<String> {
    let (left, right) = (files_below(a), files_below(b));
    for (one, other, folder) in [(&left, &right, a), (&right, &left, b)] {
        if let Some(file) = one.iter().find(|file| !other.contains(file)) {
            return Some(format!("{} is in {} alone", file.display(), folder.display()));
        }
    }
    let differing = left.iter().find_map(|file| Some((file, files(&a.join(file), &b.join(file))?)));
    differing.map(|(file, place)| format!("{}: {place}", file.display()))
}

/// Where two files differ first, in words; of disk images, in which partition.
pub fn files(a: &Path, b: &Path) -> Option<String> {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
    let (first, second) = (open(a), open(b));
    let (len, other) = (first.metadata().unwrap().len(), second.metadata().unwrap().len());
    if len != other {
        return Some(format!("{len} bytes and {other} bytes"));
    }
    let (mut left, mut right) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
    let mut at = 0;
    while let Some(next) = data(&first, at).into_iter().chain(data(&second, at)).min() {
        at = next / BLOCK * BLOCK;
        let n = usize::try_from(BLOCK.min(len - at)).unwrap();
        first.read_exact_at(&mut left[..n], at).unwrap();
        second.read_exact_at(&mut right[..n], at).unwrap();
        if let Some(within) = left[..n].iter().zip(&right[..n]).position(|(l, r)| l != r) {
            return Some(place(a, at + within as u64));
        }
        at += BLOCK;
    }
    None
}

/// Where the next data of a file are, at `at` or behind it.
fn data(file: &File, at: u64) -> Option<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Some(data),
        // There are none up to its end.
        Err(Errno::NXIO) => None,
        Err(error) => panic!("looking for data: {error}"),
    }
}

/// A byte of a file; of a disk image by its partition.
fn place(file: &Path, offset: u64) -> String {
    if file.extension().is_none_or(|extension| extension != "img") {
        return format!("at byte {offset}");
    }
    match partitions(file).into_iter().find(|part| (part.offset..part.offset + part.len).contains(&offset)) {
        Some(part) => format!("at byte {offset}, which is byte {} of partition {}", offset - part.offset, part.name),
        None => format!("at byte {offset}, outside of partitions"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn differences_of_files_are_found_and_placed() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, [0; 100]).unwrap();
        fs::write(&b, [0; 100]).unwrap();
        assert_eq!(files(&a, &b), None);
        fs::write(&b, [0; 99]).unwrap();
        assert_eq!(files(&a, &b).unwrap(), "100 bytes and 99 bytes");
    }

    #[test]
    fn holes_are_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let len = 3 * BLOCK + 5;
        fs::write(&a, vec![0; len as usize]).unwrap();
        let sparse = File::create(&b).unwrap();
        sparse.set_len(len).unwrap();
        assert_eq!(files(&a, &b), None);
        for at in [len - 1, 2 * BLOCK, BLOCK - 1, 0] {
            sparse.write_all_at(&[1], at).unwrap();
            for (one, other) in [(&a, &b), (&b, &a)] {
                assert_eq!(files(one, other).unwrap(), format!("at byte {at}"));
            }
        }
    }

    #[test]
    fn folders_have_the_same_files() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        for folder in [&a, &b] {
            fs::create_dir_all(folder.join("deep")).unwrap();
            fs::write(folder.join("deep/file"), "same").unwrap();
        }
        assert_eq!(folders(&a, &b), None);
        fs::write(b.join("deep/file"), "some").unwrap();
        assert_eq!(folders(&a, &b).unwrap(), "deep/file: at byte 1");
        fs::write(b.join("deep/other"), "").unwrap();
        assert_eq!(folders(&a, &b).unwrap(), format!("deep/other is in {} alone", b.display()));
    }
}

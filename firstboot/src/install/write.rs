// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node onto its disk, so that a power cut at any moment leaves either what was there, or a disk that says of itself
//! that its installation did not end, or the whole node:
//!
//! 1. The first sector becomes a marker, and is synced. From here on the disk is ours to begin again, and no table of it
//!    counts.
//! 2. The first and last MiB become zeros: tables, their copies and superblocks of what was there before.
//! 3. The ranges of zeros and all pieces, but for the first sector; sync.
//! 4. All of it is read back from the disk, past the page cache, and compared with the digests of the verified medium.
//! 5. The first sector replaces the marker, is synced and read back: the node is installed.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use profiles::medium::{Medium, MediumNode, Piece, Range};
use sha2::{Digest, Sha256};

use super::progress::Progress;
use super::verify::{BUFFER, Verified};
use crate::console::Console;

/// Bytes of a sector; a disk writes one whole or not at all.
pub const SECTOR: usize = 512;
/// What becomes zeros at both ends of the disk. In the image the first partition begins behind it.
pub const MARGIN: u64 = 1 << 20;
/// Alignment of what is read past the page cache: that of the largest sectors disks have.
pub const DIRECT: u64 = 4096;

const MARK: &str = "imgbuild: installing ";

/// Says on a disk whose installation did not end (docs/contracts.md, section 11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    cluster_id: String,
    node: String,
}

impl Marker {
    /// That of `node`.
    pub fn of(medium: &Medium, node: &MediumNode) -> Self {
        Self { cluster_id: medium.cluster_id.clone(), node: node.name.clone() }
    }

    /// The marker at the beginning of a disk.
    pub fn read(first: &[u8]) -> Option<Self> {
        let line = first.strip_prefix(MARK.as_bytes())?;
        let line = line.get(..line.iter().take(SECTOR).position(|byte| *byte == b'\n')?)?;
        let (cluster_id, node) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        Some(Self { cluster_id: cluster_id.to_owned(), node: node.to_owned() })
    }

    /// As a sector: one line, then zeros. It cannot be taken for a boot sector.
    pub fn sector(&self) -> Vec<u8> {
        let mut sector = format!("{MARK}{} {}\n", self.cluster_id, self.node).into_bytes();
        sector.resize(SECTOR, 0);
        sector
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an installation of the node {} of the cluster {}", self.node, self.cluster_id)
    }
}

/// What is written to. Nothing counts as written before [`Disk::sync`].
pub trait Disk {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Writes all of `bytes`.
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes a part zeros.
    fn zero(&mut self, range: Range) -> io::Result<()>;
    /// Everything written is on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Reads what is on the disk itself, not in memory. Only after [`Disk::sync`].
    fn read_back(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// The verified files of a medium.
#[derive(Debug)]
pub struct Source<'a> {
    /// Where they are.
    pub dir: &'a Path,
    /// What is in them.
    pub verified: &'a Verified,
}

/// Writes `node` to `disk`.
pub fn install(
    disk: &mut dyn Disk,
    source: &Source<'_>,
    medium: &Medium,
    node: &MediumNode,
    console: &Console,
) -> Result<()> {
    ensure!(disk.size() >= node.disk_size, "the disk is smaller than the image of {}", node.disk_size);
    let (first, rest) = split(node)?;
    first_sector(disk, &Marker::of(medium, node).sector()).context("marking the disk")?;
    let zeros = zeros(node, disk.size());
    for range in &zeros {
        disk.zero(*range).with_context(|| format!("zeroing {} bytes at {}", range.len, range.at))?;
    }
    let mut progress = Progress::new(console, "writing", rest.iter().map(|part| part.len).sum());
    let mut input = Input::new(source.dir);
    for part in &rest {
        input.each(part, &mut |at, bytes| {
            disk.write(at, bytes).with_context(|| format!("writing {} bytes at {at}", bytes.len()))?;
            progress.add(bytes.len() as u64, &part.file);
            Ok(())
        })?;
    }
    disk.sync().context("syncing the disk")?;
    progress.finish("the disk");

    let mut sector = vec![0; SECTOR];
    input.read(&first, &mut sector)?;
    check(disk, source, node, &sector, &zeros, console)?;
    first_sector(disk, &sector).context("writing the first sector")
}

/// Writes the first sector, and sees that it is there.
fn first_sector(disk: &mut dyn Disk, sector: &[u8]) -> Result<()> {
    disk.write(0, sector).and_then(|()| disk.sync())?;
    let mut found = vec![0; sector.len()];
    disk.read_back(0, &mut found)?;
    ensure!(found == sector, "the disk did not keep its first sector: it is broken or write-protected");
    Ok(())
}

/// What becomes zeros on a disk that ends at `end`: both margins without the marker, and what the node asks for.
fn zeros(node: &MediumNode, end: u64) -> Vec<Range> {
    let begin = SECTOR as u64;
    // Whole blocks of the disk. Pieces of the image that lie there come afterwards.
    let tail = (end.saturating_sub(MARGIN) / DIRECT * DIRECT).max(begin);
    let margins = [Range { at: begin, len: MARGIN.min(end) - begin }, Range { at: tail, len: end - tail }];
    margins.into_iter().chain(node.zero.iter().copied()).collect()
}

/// The first sector, and all pieces without it.
fn split(node: &MediumNode) -> Result<(Piece, Vec<Piece>)> {
    let (head, tail) = node.pieces.split_first().context("the node has no pieces")?;
    let length = SECTOR as u64;
    ensure!(head.at == 0 && head.len > length, "no piece holds the first sectors");
    let first = Piece { len: length, ..head.clone() };
    let second = Piece { file: head.file.clone(), offset: head.offset + length, at: length, len: head.len - length };
    Ok((first, std::iter::once(second).chain(tail.iter().cloned()).collect()))
}

/// Reads everything back and compares it. The first sector is still the marker: `sector`, as it will be, is compared.
fn check(
    disk: &mut dyn Disk,
    source: &Source<'_>,
    node: &MediumNode,
    sector: &[u8],
    zeros: &[Range],
    console: &Console,
) -> Result<()> {
    let total = node.pieces.iter().map(|piece| piece.len).sum();
    let mut progress = Progress::new(console, "reading back", total);
    let mut buffer = vec![0; BUFFER];
    for piece in &node.pieces {
        let mut sha = Sha256::new();
        let (mut at, end) = (piece.at, piece.at + piece.len);
        if at == 0 {
            sha.update(sector);
            at = SECTOR as u64;
        }
        while at < end {
            let part = &mut buffer[..(end - at).min(BUFFER as u64) as usize];
            disk.read_back(at, part).with_context(|| format!("reading {} bytes back at {at}", part.len()))?;
            sha.update(&*part);
            at += part.len() as u64;
            progress.add(part.len() as u64, &piece.file);
        }
        if <[u8; 32]>::from(sha.finalize()) != source.verified.of(piece)? {
            bail!(
                "what was read back from {} to {end} is not what was written ({}): the disk is broken, or the medium was \
                 read differently the second time",
                piece.at,
                piece.file
            );
        }
    }
    for range in zeros {
        let (mut at, end) = (range.at, range.at + range.len);
        while at < end {
            let part = &mut buffer[..(end - at).min(BUFFER as u64) as usize];
            disk.read_back(at, part).with_context(|| format!("reading {} bytes back at {at}", part.len()))?;
            let sound = part.iter().enumerate().all(|(index, byte)| *byte == 0 || within(node, at + index as u64));
            ensure!(sound, "what was read back from {at} on is not zeros: the disk is broken");
            at += part.len() as u64;
        }
    }
    progress.finish("the disk");
    Ok(())
}

/// Whether a piece holds this byte.
fn within(node: &MediumNode, at: u64) -> bool {
    let behind = node.pieces.partition_point(|piece| piece.at <= at);
    behind > 0 && at - node.pieces[behind - 1].at < node.pieces[behind - 1].len
}

/// The medium's files, the last one kept open.
struct Input<'a> {
    dir: &'a Path,
    open: Option<(String, File)>,
    buffer: Vec<u8>,
}

impl<'a> Input<'a> {
    fn new(dir: &'a Path) -> Self {
        Self { dir, open: None, buffer: Vec::new() }
    }

    fn file(&mut self, name: &str) -> Result<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| open != name) {
            let path = self.dir.join(name);
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            self.open = Some((name.to_owned(), file));
        }
        let (_, file) = self.open.as_ref().context("a file was just opened")?;
        Ok(file)
    }

    /// Reads the beginning of `piece`.
    fn read(&mut self, piece: &Piece, buffer: &mut [u8]) -> Result<()> {
        let read = self.file(&piece.file)?.read_exact_at(buffer, piece.offset);
        read.with_context(|| format!("reading the medium's file `{}`", piece.file))
    }

    /// Calls `take` with all of `piece`, each part with where it goes.
    fn each(&mut self, piece: &Piece, take: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let mut done = 0;
        while done < piece.len {
            let part = &mut buffer[..(piece.len - done).min(BUFFER as u64) as usize];
            self.read(&Piece { offset: piece.offset + done, ..piece.clone() }, part)?;
            take(piece.at + done, part)?;
            done += part.len() as u64;
        }
        self.buffer = buffer;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::install::device::Device;
    use crate::install::probe::{self, State};
    use crate::install::testing::{IMAGE, contents, medium, quiet, written};
    use crate::install::verify;

    /// Larger than the image, and no whole number of MiB.
    const SIZE: usize = (7 << 20) + 512;

    /// A disk in memory with a cache of its own: at a power cut, of what was not synced each sector is there or not, as
    /// `luck` has it. The cut comes at operation number `left`.
    struct Cut {
        durable: Vec<u8>,
        pending: Vec<(usize, Vec<u8>)>,
        left: usize,
        luck: u64,
    }

    impl Cut {
        fn new(content: Vec<u8>, left: usize, luck: u64) -> Self {
            Self { durable: content, pending: Vec::new(), left, luck }
        }

        fn step(&mut self) -> io::Result<()> {
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(())
        }

        /// What is on the disk when the power is back.
        fn after(mut self) -> Vec<u8> {
            let mut luck = self.luck | 1;
            for (at, bytes) in std::mem::take(&mut self.pending) {
                for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                    // xorshift64
                    luck ^= luck << 13;
                    luck ^= luck >> 7;
                    luck ^= luck << 17;
                    if luck >> 40 & 1 == 1 {
                        self.durable[at + index * SECTOR..][..sector.len()].copy_from_slice(sector);
                    }
                }
            }
            self.durable
        }
    }

    impl Disk for Cut {
        fn size(&self) -> u64 {
            self.durable.len() as u64
        }

        fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
            self.pending.push((at as usize, bytes.to_vec()));
            self.step()
        }

        fn zero(&mut self, range: Range) -> io::Result<()> {
            self.write(range.at, &vec![0; range.len as usize])
        }

        fn sync(&mut self) -> io::Result<()> {
            self.step()?;
            for (at, bytes) in std::mem::take(&mut self.pending) {
                self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            self.step()
        }

        fn read_back(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
            assert!(self.pending.is_empty(), "nothing is read back that was not synced");
            buffer.copy_from_slice(&self.durable[at as usize..at as usize + buffer.len()]);
            Ok(())
        }
    }

    struct Fixture {
        dir: tempfile::TempDir,
        medium: Medium,
        verified: Verified,
    }

    fn fixture() -> Fixture {
        let (dir, medium) = written(&["master-1"]);
        let node = &medium.nodes[0];
        let verified = verify::files(dir.path(), &medium, &verify::files_of(node), &node.pieces, &quiet()).unwrap();
        Fixture { dir, medium, verified }
    }

    impl Fixture {
        fn install(&self, disk: &mut dyn Disk) -> Result<()> {
            let source = Source { dir: self.dir.path(), verified: &self.verified };
            install(disk, &source, &self.medium, &self.medium.nodes[0], &quiet())
        }

        fn state(&self, content: &[u8]) -> State {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk");
            std::fs::write(&path, content).unwrap();
            let node = &self.medium.nodes[0];
            probe::state(&mut File::open(&path).unwrap(), content.len() as u64, node, &self.medium)
        }

        /// What a disk that was `old` must be in the end, by the meaning of pieces and zeros alone.
        fn expected(&self, mut old: Vec<u8>) -> Vec<u8> {
            let contents = contents(&["master-1"]);
            let end = old.len();
            old[..1 << 20].fill(0);
            old[(end - (1 << 20)) / 4096 * 4096..].fill(0);
            let node = &self.medium.nodes[0];
            for range in &node.zero {
                old[range.at as usize..(range.at + range.len) as usize].fill(0);
            }
            for piece in &node.pieces {
                let bytes = &contents[&piece.file][piece.offset as usize..(piece.offset + piece.len) as usize];
                old[piece.at as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            old
        }
    }

    fn old_data() -> Vec<u8> {
        (0..SIZE).map(|at| (at / 7) as u8 | 1).collect()
    }

    #[test]
    fn the_whole_node_is_on_the_disk() {
        let fixture = fixture();
        let mut disk = Cut::new(old_data(), usize::MAX, 0);
        fixture.install(&mut disk).unwrap();
        let content = disk.after();
        assert!(content == fixture.expected(old_data()));
        assert_eq!(fixture.state(&content), State::Installed);
    }

    #[test]
    fn the_same_through_a_file() {
        let fixture = fixture();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, old_data()).unwrap();
        let mut disk = Device::open(&path, SIZE as u64).unwrap();
        fixture.install(&mut disk).unwrap();
        let mut part = vec![0; 1000];
        disk.read_back(SIZE as u64 - 1000, &mut part).unwrap();
        let expected = fixture.expected(old_data());
        assert!(part == expected[SIZE - 1000..]);
        assert!(disk.read_back(SIZE as u64 - 10, &mut part).is_err(), "the disk ends there");
        assert!(std::fs::read(&path).unwrap() == expected);
        assert!(disk.reread_table().is_err(), "a file is no block device");
    }

    #[test]
    fn a_power_cut_after_any_operation_is_made_up_for() {
        let fixture = fixture();
        let mut whole = Cut::new(old_data(), usize::MAX, 0);
        fixture.install(&mut whole).unwrap();
        let operations = usize::MAX - whole.left;
        let expected = whole.after();
        let old = old_data();
        let (mut before, mut marked, mut installed) = (0, 0, 0);
        for luck in 0..4u64 {
            for cut in 0..operations {
                let seed = (luck * 1000 + cut as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut disk = Cut::new(old.clone(), cut, seed);
                fixture.install(&mut disk).unwrap_err();
                let content = disk.after();
                match fixture.state(&content) {
                    State::Installed => {
                        assert!(content == expected, "cut {cut}: installed, but not whole");
                        installed += 1;
                    }
                    State::UnderWay => marked += 1,
                    State::Foreign(_) => {
                        assert!(content == old, "cut {cut}: neither what was there nor ours");
                        before += 1;
                    }
                    other => panic!("cut {cut}: {other:?}"),
                }
                let mut again = Cut::new(content, usize::MAX, 0);
                fixture.install(&mut again).unwrap();
                assert!(again.after() == expected, "cut {cut}: the second time is another disk");
            }
        }
        assert!(before > 0 && marked > 10 && installed > 0, "{before} {marked} {installed}");
    }

    /// A disk that loses one byte, wherever it is.
    struct Broken(Cut, u64);

    impl Disk for Broken {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
            let mut bytes = bytes.to_vec();
            if let Some(byte) = self.1.checked_sub(at).and_then(|index| bytes.get_mut(index as usize)) {
                *byte ^= 0x10;
            }
            self.0.write(at, &bytes)
        }
        fn zero(&mut self, range: Range) -> io::Result<()> {
            self.write(range.at, &vec![0; range.len as usize])
        }
        fn sync(&mut self) -> io::Result<()> {
            self.0.sync()
        }
        fn read_back(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.0.read_back(at, buffer)
        }
    }

    #[test]
    fn a_disk_that_loses_a_byte_is_found_out() {
        let fixture = fixture();
        let node = &fixture.medium.nodes[0];
        let mut places: Vec<u64> = node.pieces.iter().flat_map(|p| [p.at, p.at + p.len - 1]).collect();
        places.extend(node.zero.iter().flat_map(|range| [range.at, range.at + range.len - 1]));
        for place in places {
            let mut disk = Broken(Cut::new(vec![0; SIZE], usize::MAX, 0), place);
            let error = format!("{:#}", fixture.install(&mut disk).unwrap_err());
            assert!(error.contains("broken"), "{place}: {error}");
            let state = fixture.state(&disk.0.after());
            assert_ne!(state, State::Installed, "{place}");
            assert!(place == 0 || state == State::UnderWay, "{place}: {state:?}");
        }
    }

    #[test]
    fn a_medium_that_reads_differently_the_second_time_is_found_out() {
        let fixture = fixture();
        let path = fixture.dir.path().join("root.squashfs");
        let mut content = std::fs::read(&path).unwrap();
        content[1000] ^= 1;
        std::fs::write(&path, content).unwrap();
        let mut disk = Cut::new(vec![0; SIZE], usize::MAX, 0);
        let error = format!("{:#}", fixture.install(&mut disk).unwrap_err());
        assert!(error.contains("root.squashfs"), "{error}");
        assert_eq!(fixture.state(&disk.after()), State::UnderWay);
    }

    #[test]
    fn a_disk_of_the_images_own_size_is_enough_and_a_smaller_one_is_not() {
        let fixture = fixture();
        let mut disk = Cut::new(vec![7; IMAGE as usize], usize::MAX, 0);
        fixture.install(&mut disk).unwrap();
        assert!(disk.after() == fixture.expected(vec![7; IMAGE as usize]));
        let mut disk = Cut::new(vec![7; IMAGE as usize - 512], usize::MAX, 0);
        fixture.install(&mut disk).unwrap_err();
        assert!(disk.after() == vec![7; IMAGE as usize - 512], "nothing is written");
    }

    #[test]
    fn markers_come_back() {
        let medium = medium(&["master-1"]);
        let marker = Marker::of(&medium, &medium.nodes[0]);
        let sector = marker.sector();
        assert_eq!(sector.len(), SECTOR);
        assert!(sector.starts_with(b"imgbuild: installing 0123456789abcdef0123456789abcdef master-1\n"));
        assert_eq!(Marker::read(&sector), Some(marker));
        assert_eq!(Marker::read(&[0; SECTOR]), None);
        assert_eq!(Marker::read(b"imgbuild: installing x"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut marked = MARK.as_bytes().to_vec();
            marked.append(&mut bytes);
            let _ = Marker::read(&marked);
        }
    }
}

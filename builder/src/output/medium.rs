// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an installation medium holds, whatever carries it (docs/contracts.md, section 11): the disks of several nodes, in
//! pieces, and the index that says how they come together. `profiles::medium` is the index's schema.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail};
use profiles::medium::{INDEX, Machine, Medium, MediumFile, MediumNode, Piece, Range, SCHEMA, Target};
use profiles::node::Architecture;
use profiles::signing::SUMS;
use sha2::{Digest as _, Sha256};

use super::disk::{Checked, DiskPlan, MIB, disk_guid};
use super::pieces::{Blocks, Home, Region, Run, normal};
use super::sums;
use crate::image::gpt::{ALIGN, Table};
use crate::signing::Signer;
use crate::store::{Digest, Store};

/// Path of the blocks that several nodes share.
const SHARED: &str = "blocks.bin";
/// At either end of a partition that is empty: no superblock of another filesystem, volume manager or RAID lies farther from
/// the end that it is found by (libblkid's probes; ZFS keeps two labels of 256 KiB at each end, the others less).
const SIGNATURES: u64 = MIB;

/// What a medium is made of.
#[derive(Debug, Clone)]
pub struct MediumPlan {
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the cluster.
    pub cluster_id: String,
    /// CPU architecture of everything.
    pub architecture: Architecture,
    /// The nodes, in the cluster file's order; at least one.
    pub nodes: Vec<NodePlan>,
    /// What signs it, if anything does.
    pub signer: Option<Signer>,
}

/// A node on a medium.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its disk.
    pub disk: DiskPlan,
    /// What is in the names of its root and payload, the same for all nodes that share them: `pods` or `etcd`.
    pub kind: &'static str,
    /// Whether it is a member of etcd, which must not forget and so cannot run from memory.
    pub etcd_member: bool,
    /// By what the machine is known.
    pub machine: Machine,
    /// Which disk it is installed to.
    pub target: Target,
}

/// Where the bytes of a file of a medium are.
#[derive(Debug)]
pub enum Source {
    /// A store object.
    Object(Digest),
    /// A file without a name: secrets do not lie about.
    Nameless(File),
    /// In memory.
    Bytes(Vec<u8>),
}

/// A medium that is ready to be written to whatever carries it.
#[derive(Debug)]
pub struct BuiltMedium {
    /// The index.
    pub index: Medium,
    /// The index as it lies on the medium, `medium.json`.
    pub json: Vec<u8>,
    /// All files of the index, by path below `imgbuild/`.
    pub files: BTreeMap<String, Source>,
    /// Where it is signed: the list of checksums, of the index too, and the signature over that. By path below `imgbuild/`.
    pub lists: BTreeMap<String, Vec<u8>>,
}

impl BuiltMedium {
    /// SHA-256 of the index: what the kernel command line names, `imgbuild.medium=`.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.json)
    }
}

/// Whether a file of a medium holds secrets: those of one node do.
pub fn is_secret(path: &str) -> bool {
    path.starts_with("nodes/")
}

/// Makes the files of a medium. The same plan gives the same bytes.
///
/// # Errors
/// As `disk::write`: contents that do not fit, with the number to set. No node; failing I/O.
pub fn build(plan: &MediumPlan, store: &Store) -> Result<BuiltMedium> {
    if plan.nodes.is_empty() {
        bail!("a medium without nodes");
    }
    let mut files = Files::default();
    let mut blocks = Blocks::new(store.nameless()?);
    let mut zeros = Vec::new();
    let mut images = Vec::new();
    for NodePlan { disk, .. } in &plan.nodes {
        let checked = Checked::new(disk, store).with_context(|| format!("the disk of {}", disk.node))?;
        let frame = store.nameless()?;
        checked.frame(store, &frame).with_context(|| format!("making the disk of {}", disk.node))?;
        let regions = regions(&checked.table, disk.sizes.disk)?;
        let holes = blocks.add(&frame, &regions).with_context(|| format!("reading the disk of {}", disk.node))?;
        let Checked { table, root, payload, .. } = checked;
        let [root, payload] = [("root", root), ("payload", payload)].map(|(what, image)| {
            let name = file_name(plan, what, image.digest);
            files.add(&name, image.len, image.digest, Source::Object(image.digest));
            Piece { file: name, offset: 0, at: image.at, len: image.len }
        });
        zeros.push(normal([holes, unused(&table, &[&root, &payload])].concat()));
        images.push((root, payload));
    }
    let runs = write_blocks(plan, blocks, &mut files, store)?;
    let mut nodes = Vec::new();
    for (((node, (root, payload)), zero), runs) in plan.nodes.iter().zip(images).zip(zeros).zip(runs) {
        let name = &node.disk.node;
        files.add_seed(node, store)?;
        let (root_file, payload_file) = (root.file.clone(), payload.file.clone());
        let own = |Run { home, offset, at, len }| {
            let file = match home {
                Home::Shared => SHARED.to_owned(),
                Home::Own => own_path(name),
            };
            Piece { file, offset, at, len }
        };
        let mut pieces: Vec<Piece> = runs.into_iter().map(own).chain([root, payload]).collect();
        pieces.sort_unstable_by_key(|piece| piece.at);
        nodes.push(MediumNode {
            name: name.clone(),
            disk_guid: disk_guid(&plan.cluster_id, name).to_string(),
            disk_size: node.disk.sizes.disk,
            root: root_file,
            payload: payload_file,
            machine: node.machine.clone(),
            target: node.target.clone(),
            pieces,
            zero,
        });
    }
    let index = Medium {
        schema: SCHEMA,
        cluster: plan.cluster.clone(),
        cluster_id: plan.cluster_id.clone(),
        architecture: plan.architecture,
        files: files.index.clone(),
        nodes,
    };
    let mut json = serde_json::to_vec_pretty(&index).context("writing the medium's index")?;
    json.push(b'\n');
    let lists = plan.signer.as_ref().map_or_else(BTreeMap::new, |signer| lists(signer, &plan.cluster, &files, &json));
    Ok(BuiltMedium { index, json, files: files.sources, lists })
}

/// The list of checksums with its signature.
fn lists(signer: &Signer, cluster: &str, files: &Files, json: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut digests = files.digests.clone();
    digests.insert(INDEX.to_owned(), Digest::of(json));
    let text = sums::text(&digests);
    let signature = sums::sign(signer, cluster, SUMS, &text);
    BTreeMap::from([(SUMS.to_owned(), text.into_bytes()), (sums::signature_of(SUMS), signature.into_bytes())])
}

fn own_path(node: &str) -> String {
    format!("nodes/{node}.bin")
}

/// The name of a root or payload. What nodes of both kinds share is there once, under the name of those that run pods.
fn file_name(plan: &MediumPlan, what: &str, digest: Digest) -> String {
    let users = plan.nodes.iter().filter(|node| [node.disk.root, node.disk.payload].contains(&digest));
    let kind = users.map(|node| node.kind).max().unwrap_or_default();
    format!("{what}-{kind}.squashfs")
}

/// Everything on a disk but root and payload: the head of the table, the EFI system partition, the seed, and what is behind
/// the last partition, the table's backup. Only of the EFI system partition may anything be shared: the others name the node,
/// or hold its secrets.
fn regions(table: &Table, disk: u64) -> Result<[Region; 4]> {
    let find = |label: &str| {
        let found = table.partitions.iter().find(|partition| partition.label == label);
        found.map(|partition| Range { at: partition.offset, len: partition.len }).context("a partition of the layout")
    };
    let end = table.partitions.iter().map(|partition| partition.offset + partition.len).max().unwrap_or(ALIGN);
    let own = |range| Region { range, shared: false, to_the_end: true };
    Ok([
        own(Range { at: 0, len: ALIGN }),
        // A free cluster may hold anything, but allocation tables and directories may not: they all lie before the last data.
        Region { range: find("ESP")?, shared: true, to_the_end: false },
        own(find("CIDATA")?),
        own(Range { at: end, len: disk - end }),
    ])
}

/// Where a disk that was used before may show something that is not ours: both ends of empty partitions, and the ends of
/// those that an image does not fill.
fn unused(table: &Table, images: &[&Piece]) -> Vec<Range> {
    let mut out = Vec::new();
    for partition in &table.partitions {
        let end = partition.offset + partition.len;
        let last = end - SIGNATURES.min(partition.len);
        match partition.label.as_str() {
            "ESP" | "CIDATA" => {}
            _ => match images.iter().find(|image| image.at == partition.offset) {
                Some(image) => {
                    let from = last.max(image.at + image.len);
                    out.push(Range { at: from, len: end - from });
                }
                None => {
                    out.push(Range { at: partition.offset, len: SIGNATURES.min(partition.len) });
                    out.push(Range { at: last, len: end - last });
                }
            },
        }
    }
    out
}

fn write_blocks(plan: &MediumPlan, blocks: Blocks, files: &mut Files, store: &Store) -> Result<Vec<Vec<Run>>> {
    let mut shared = Hashed::new(store)?;
    let mut own = plan.nodes.iter().map(|_| Hashed::new(store)).collect::<Result<Vec<_>>>()?;
    let runs = blocks.finish(&mut shared, &mut own)?;
    if shared.len > 0 {
        files.add_hashed(SHARED, shared)?;
    }
    for (node, file) in plan.nodes.iter().zip(own) {
        files.add_hashed(&own_path(&node.disk.node), file)?;
    }
    Ok(runs)
}

/// Files of a medium under way.
#[derive(Default)]
struct Files {
    index: BTreeMap<String, MediumFile>,
    digests: BTreeMap<String, Digest>,
    sources: BTreeMap<String, Source>,
}

impl Files {
    fn add(&mut self, path: &str, size: u64, digest: Digest, source: Source) {
        self.index.insert(path.to_owned(), MediumFile { size, sha256: digest.to_string() });
        self.digests.insert(path.to_owned(), digest);
        self.sources.insert(path.to_owned(), source);
    }

    fn add_hashed(&mut self, path: &str, file: Hashed) -> Result<()> {
        let Hashed { file, hasher, len } = file;
        let mut file = file.into_inner().map_err(|error| error.into_error()).context("writing a medium's file")?;
        file.seek(SeekFrom::Start(0)).context("writing a medium's file")?;
        self.add(path, len, Digest::of_hasher(hasher), Source::Nameless(file));
        Ok(())
    }

    /// The documents of a node's seed, as they are on its disk.
    fn add_seed(&mut self, node: &NodePlan, store: &Store) -> Result<()> {
        let name = &node.disk.node;
        for (path, _) in node.disk.seed.below("") {
            let content = node.disk.seed.content(path).with_context(|| format!("`{path}` in a seed is no file"))?;
            let bytes = content.read(store).with_context(|| format!("reading the seed of {name}"))?;
            self.add(&format!("nodes/{name}/{path}"), bytes.len() as u64, Digest::of(&bytes), Source::Bytes(bytes));
        }
        Ok(())
    }
}

/// A nameless file that knows its digest when it is written.
struct Hashed {
    file: BufWriter<File>,
    hasher: Sha256,
    len: u64,
}

impl Hashed {
    fn new(store: &Store) -> Result<Self> {
        Ok(Self { file: BufWriter::new(store.nameless()?), hasher: Sha256::new(), len: 0 })
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

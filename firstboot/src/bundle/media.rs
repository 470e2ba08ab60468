// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bundle that was unpacked: its files against its list of checksums, its index, its seeds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::bundle::{self, Bundle, PayloadKind, SCHEMA};
use profiles::node::Architecture;
use profiles::signing::{KeyId, PublicKey, SIGNATURE_MAX, SUFFIX, Signature};
use sha2::{Digest, Sha256};

use super::Machine;
use crate::context::below;
use crate::digest::{self, hex};
use crate::failure::Failure;
use crate::files;
use crate::payload::{self, Payload};
use crate::seed::document::Seed;
use crate::seed::{self, RawSeed};

/// Nobody reads more than this of a list of problems.
const MOST_PROBLEMS: usize = 10;
/// A list of checksums has some hundred lines.
const SUMS_LIMIT: u64 = 16 << 20;
const UNPACK_AGAIN: &str = "copy the archive again (compare its sha256sum), and unpack it into a new folder";

/// A verified bundle.
#[derive(Debug)]
pub(super) struct Unpacked {
    dir: PathBuf,
    /// Its index.
    pub index: Bundle,
    /// SHA-256 of its list of checksums: its identity.
    pub digest: String,
    /// The key that signed that list; `None` if none had to.
    pub signed_by: Option<KeyId>,
    files: BTreeMap<String, String>,
}

impl Unpacked {
    /// Reads every file in `dir` that is of this architecture. Its list must be signed with `key`, or with the one that
    /// the bundle names: that tells a bundle that was changed by mistake, and only a `key` tells one that was changed on
    /// purpose.
    ///
    /// # Errors
    /// Exit code 10: no such signature; all files that are missing or not what the list says.
    pub(super) fn open(dir: &Path, architecture: Architecture, key: Option<&PublicKey>) -> Result<Self> {
        let bad = |error: anyhow::Error| Failure::seed(format!("{error:#}"), UNPACK_AGAIN);
        let name = bundle::sums(architecture);
        let sums = files::read_limited(&dir.join(&name), SUMS_LIMIT)
            .with_context(|| format!("reading {name} of the bundle in {}", dir.display()))
            .map_err(bad)?;
        let path = format!("{}/{}", bundle::folder(architecture), bundle::INDEX);
        let key = match key {
            Some(key) => Some(*key),
            None => named_key(&dir.join(&path)).map_err(bad)?,
        };
        if let Some(key) = &key {
            signature(dir, &name, &sums, key)?;
        }
        let files = understand(&sums).with_context(|| format!("understanding {name}")).map_err(bad)?;
        let problems: Vec<String> = files
            .iter()
            .filter_map(|(path, sum)| problem(dir, path, sum).map(|what| format!("{path} {what}")))
            .collect();
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(MOST_PROBLEMS);
            let mut text = problems[..problems.len() - more].join(", ");
            if more > 0 {
                text += &format!(", and {more} more");
            }
            return Err(
                Failure::seed(format!("the bundle in {} is damaged: {text}", dir.display()), UNPACK_AGAIN).into()
            );
        }
        let index = fs::read(dir.join(&path)).with_context(|| format!("reading {path}")).map_err(bad)?;
        let index: Bundle =
            serde_json::from_slice(&index).with_context(|| format!("understanding {path}")).map_err(bad)?;
        if index.schema != SCHEMA || index.architecture != architecture {
            let reason = format!("{path} is of another version or of another architecture");
            return Err(Failure::seed(reason, "use the bundle's own `./install`").into());
        }
        let signed_by = key.map(|key| key.id());
        Ok(Self { dir: dir.to_owned(), index, digest: digest::sha256(&sums), signed_by, files })
    }

    fn folder(&self) -> &'static str {
        bundle::folder(self.index.architecture)
    }

    /// The seed of a node, as it is and understood.
    pub(super) fn seed(&self, node: &str) -> Result<(RawSeed, Seed)> {
        let dir = self.dir.join(self.folder()).join(bundle::SEEDS).join(node);
        let raw = RawSeed::read(&dir)?
            .ok_or_else(|| Failure::seed(format!("the bundle has no seed of {node}"), UNPACK_AGAIN))?;
        let seed = raw.parse()?;
        if seed.profile().node.name != node || seed.profile().cluster.id != self.index.cluster_id {
            let reason = format!("the seed in {} is of another node or of another cluster", dir.display());
            return Err(Failure::seed(reason, UNPACK_AGAIN).into());
        }
        Ok((raw, seed))
    }

    /// The files of a payload: path below its folder, and where it is.
    pub(super) fn payload(&self, kind: PayloadKind) -> impl Iterator<Item = (&str, PathBuf)> {
        let prefix = format!("{}/{kind}/", self.folder());
        self.files.keys().filter_map(move |path| Some((path.strip_prefix(&prefix)?, self.dir.join(path))))
    }

    /// What a payload says of itself.
    pub(super) fn description(&self, kind: PayloadKind) -> Result<Payload> {
        payload::read(&self.dir.join(self.folder()).join(kind.to_string()).join("payload.json"))
    }

    /// Which payload a node gets, by the index.
    pub(super) fn kind(&self, node: &str) -> Option<PayloadKind> {
        self.index.node(node).map(|known| known.payload)
    }

    /// Why no machine of this architecture can be the node `name`.
    fn not_here(&self, name: &str) -> Failure {
        let own = self.index.architecture;
        let has = |other: Architecture| self.other_half(other).is_some_and(|half| half.node(name).is_some());
        let of = Architecture::ALL.into_iter().find(|other| *other != own && has(*other));
        match of {
            Some(other) => Failure::seed(
                format!("`{name}` is a node for {} machines, and this one is {}", other.machine(), own.machine()),
                format!("install it there; for this machine the bundle has: {}", self.names()),
            ),
            None => Failure::seed(
                format!("the bundle has no seed of `{name}`; it has: {}", self.names()),
                "name one of them with --profile, or build a bundle with that node",
            ),
        }
    }

    /// The index of the bundle's half for another architecture, if that is there too. It is not verified: only messages
    /// come of it.
    fn other_half(&self, architecture: Architecture) -> Option<Bundle> {
        let path = self.dir.join(bundle::folder(architecture)).join(bundle::INDEX);
        let text = files::read_limited(&path, SUMS_LIMIT).ok()?;
        serde_json::from_slice(&text).ok().filter(|index: &Bundle| index.cluster_id == self.index.cluster_id)
    }

    fn names(&self) -> String {
        self.index.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Which node this machine is to be.
    pub(super) fn choose(&self, machine: &Machine<'_>, profile: Option<&str>) -> Result<String> {
        if let Some(name) = profile {
            return match self.kind(name) {
                Some(_) => Ok(name.to_owned()),
                None => Err(self.not_here(name).into()),
            };
        }
        if let Some((origin, raw)) = seed::offered(machine.disk.root(), machine.seeds, machine.console)?
            && let Some(name) = raw.host_name()
            && self.kind(&name).is_some()
        {
            machine.console.say("install", &format!("this is {name}, by the seed on {origin}"));
            return Ok(name);
        }
        let profiles: Vec<_> = self
            .index
            .nodes
            .iter()
            .map(|node| Ok(self.seed(&node.name)?.1.ours.profile))
            .collect::<Result<Vec<_>>>()?;
        let macs: Vec<String> = machine
            .interfaces()
            .iter()
            .filter_map(|name| {
                let path = below(machine.disk.root(), &format!("/sys/class/net/{name}/address"));
                Some(fs::read_to_string(path).ok()?.trim().to_lowercase())
            })
            .collect();
        let by_mac = profiles.iter().filter(|profile| profile.node.mac.as_ref().is_some_and(|mac| macs.contains(mac)));
        let by_address = profiles.iter().filter(|profile| machine.host.has_address(profile.node.address.addr()));
        for (how, found) in [("MAC address", by_mac.collect::<Vec<_>>()), ("address", by_address.collect())] {
            if let [only] = found.as_slice() {
                machine.console.say("install", &format!("this is {}, by its {how}", only.node.name));
                return Ok(only.node.name.clone());
            }
        }
        Err(Failure::seed(
            "which node is this machine? It has the MAC address or the address of none in the bundle, or of several",
            format!("name it: --profile NODE; the bundle has {}", self.names()),
        )
        .into())
    }
}

/// The key that an index names, which is not verified yet. One that is not there or not understood is the list's to
/// tell.
fn named_key(index: &Path) -> Result<Option<PublicKey>> {
    let Ok(text) = files::read_limited(index, SUMS_LIMIT) else { return Ok(None) };
    let Ok(index) = serde_json::from_slice::<Bundle>(&text) else { return Ok(None) };
    let key = index.signing_key.map(|key| key.parse()).transpose();
    key.context("reading the key that the bundle names as its signer's")
}

/// Fails unless `key` signed the list called `name`.
fn signature(dir: &Path, name: &str, list: &[u8], key: &PublicKey) -> Result<()> {
    let refuse = |why: String| {
        let reason = format!("the bundle in {} is not signed by {}: {why}", dir.display(), key.id());
        Failure::seed(reason, "take the archive as `imgbuild build --sign` wrote it, and unpack it into a new folder")
    };
    let file = format!("{name}{SUFFIX}");
    let text = files::read_limited(&dir.join(&file), SIGNATURE_MAX);
    let text = text.map_err(|error| refuse(format!("{file} cannot be read ({error})")))?;
    let text = String::from_utf8(text).map_err(|_| refuse(format!("{file} is not UTF-8")))?;
    let signature = Signature::parse(&text).map_err(|error| refuse(format!("{file}: {error}")))?;
    key.verify(list, &signature).map_err(|error| refuse(error.to_string()))?;
    Ok(())
}

/// Lines of `sha256sum`: path to checksum.
fn understand(text: &[u8]) -> Result<BTreeMap<String, String>> {
    let text = std::str::from_utf8(text).context("it is not UTF-8")?;
    let mut files = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let entry = line.split_once("  ").filter(|(sum, path)| {
            let clean = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            clean && sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        let (sum, path) = entry.with_context(|| format!("line {} is no checksum of a file", number + 1))?;
        files.insert(path.to_owned(), sum.to_owned());
    }
    anyhow::ensure!(!files.is_empty(), "it is empty");
    Ok(files)
}

/// What is wrong with a file.
fn problem(dir: &Path, path: &str, sum: &str) -> Option<String> {
    // Not through links: what was verified must be what is copied.
    let mut at = dir.to_owned();
    for part in path.split('/') {
        at.push(part);
        match fs::symlink_metadata(&at) {
            Err(_) => return Some("is missing".to_owned()),
            Ok(meta) if meta.is_symlink() => return Some("leads through a link".to_owned()),
            Ok(_) => {}
        }
    }
    match sha256(&at) {
        Ok(found) if found == sum => None,
        Ok(_) => Some("has other content".to_owned()),
        Err(error) => Some(format!("cannot be read ({error})")),
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// For tests/fuzz: no path of a list leads out of the bundle.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &[u8]) {
    for path in understand(text).into_iter().flat_map(BTreeMap::into_keys) {
        assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path}");
    }
    let _ = serde_json::from_slice::<Bundle>(text);
}

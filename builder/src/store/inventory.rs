// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which objects there are: in a store, in an export, on the other side. The same text for all three, so that what
//! `imgbuild store list --json` prints in one place says in another what need not be carried there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Digest;
use crate::error::Failure;

/// The name of an export's inventory.
pub const INDEX: &str = "index.json";
/// The folder with the objects, in a store and in an export.
pub const OBJECTS: &str = "objects";

const SCHEMA: u32 = 1;
/// An inventory of a million objects has some 150 MB. What is longer is none.
const LONGEST: u64 = 256 << 20;

/// What is known of an object besides its digest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// Size in bytes.
    pub size: u64,
    /// What it is, for people; empty where that is not known.
    pub name: String,
}

/// Objects by digest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// The objects.
    pub objects: BTreeMap<Digest, About>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    schema: u32,
    objects: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sha256: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
}

/// Where the object `digest` lies below a folder of objects.
pub(super) fn place(objects: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.to_string();
    objects.join(&hex[..2]).join(&hex[2..])
}

/// What lies below a folder of objects.
#[derive(Debug, Default)]
pub struct Listing {
    /// Objects by what they are called: nothing is read.
    pub inventory: Inventory,
    /// What is no object by its name or kind, sorted.
    pub strangers: Vec<PathBuf>,
}

impl Listing {
    /// Lists the folder `objects`.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn of(objects: &Path) -> Result<Self> {
        let mut listing = Self::default();
        let reading = |path: &Path, e| Failure::io(format!("listing {}", path.display()), e);
        for folder in entries(objects).map_err(|e| reading(objects, e))? {
            let prefix = hex_name(&folder, 2);
            let Some(prefix) = prefix.filter(|_| folder.symlink_metadata().is_ok_and(|meta| meta.is_dir())) else {
                listing.strangers.push(folder);
                continue;
            };
            for path in entries(&folder).map_err(|e| reading(&folder, e))? {
                let meta = match path.symlink_metadata() {
                    Ok(meta) => meta,
                    // Somebody else has just removed it.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(reading(&path, e).into()),
                };
                match hex_name(&path, 62).and_then(|rest| format!("{prefix}{rest}").parse::<Digest>().ok()) {
                    Some(digest) if meta.is_file() => {
                        let about = About { size: meta.len(), name: String::new() };
                        listing.inventory.objects.insert(digest, about);
                    }
                    _ => listing.strangers.push(path),
                }
            }
        }
        listing.strangers.sort();
        Ok(listing)
    }
}

/// The paths in a folder.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// The name of a file, if it is `len` lower-case hex digits.
fn hex_name(path: &Path, len: usize) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    (name.len() == len && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
        .then(|| name.to_owned())
}

impl Inventory {
    /// The inventory at `path`: a file as [`Self::to_text`] writes it, an export, or the folder of a store.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn at(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::read(path);
        }
        let (index, objects) = (path.join(INDEX), path.join(OBJECTS));
        if index.exists() {
            return Self::read(&index);
        }
        // A store has this folder, too; in an export that did not end, the objects may be half there.
        if objects.is_dir() && path.join("steps").is_dir() {
            return Ok(Listing::of(&objects)?.inventory);
        }
        let message = format!("{} is neither an inventory, nor an export, nor a store", path.display());
        Err(Failure::user(message)
            .hint("on the other side, `imgbuild store list --json > inventory.json` makes an inventory")
            .into())
    }

    fn read(path: &Path) -> Result<Self> {
        let reading = |e| Failure::io(format!("reading {}", path.display()), e);
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Failure::user(format!("there is no {}", path.display())).caused_by(e),
            _ => reading(e),
        })?;
        let mut text = String::new();
        file.take(LONGEST + 1).read_to_string(&mut text).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => no_inventory(path, "it is not UTF-8"),
            _ => reading(e),
        })?;
        if text.len() as u64 > LONGEST {
            return Err(no_inventory(path, &format!("it has more than {} MiB", LONGEST >> 20)).into());
        }
        Ok(Self::parse(&text).map_err(|why| no_inventory(path, &why))?)
    }

    /// Reads the text of an inventory.
    ///
    /// # Errors
    /// If it is none: says why, with line and column where that is known.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text: Text = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if text.schema != SCHEMA {
            return Err(format!("its schema is {}, this imgbuild knows {SCHEMA}", text.schema));
        }
        let mut objects = BTreeMap::new();
        for Line { sha256, size, name } in text.objects {
            if objects.insert(sha256, About { size, name }).is_some() {
                return Err(format!("it lists {sha256} twice"));
            }
        }
        Ok(Self { objects })
    }

    /// The text: JSON, one object a line, sorted by digest.
    pub fn to_text(&self) -> Result<String> {
        let lines = self.objects.iter().map(|(sha256, About { size, name })| {
            let line = Line { sha256: *sha256, size: *size, name: name.clone() };
            serde_json::to_string(&line).context("describing an object")
        });
        let lines = lines.collect::<Result<Vec<_>>>()?.join(",\n");
        let between = if lines.is_empty() { "" } else { "\n" };
        Ok(format!("{{\"schema\":{SCHEMA},\"objects\":[{between}{lines}{between}]}}\n"))
    }

    /// Whether the object is there with its size: one of another size is damaged.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        self.objects.get(digest).is_some_and(|about| about.size == size)
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.values().fold(0_u64, |sum, about| sum.saturating_add(about.size))
    }

    /// Adds what another inventory has.
    pub fn add(&mut self, other: Self) {
        self.objects.extend(other.objects);
    }
}

fn no_inventory(path: &Path, why: &str) -> Failure {
    Failure::user(format!("{} is no inventory: {why}", path.display()))
        .hint("an inventory is what `imgbuild store list --json` prints, and the index.json of an export")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_is_one_object_a_line_and_reads_back() {
        let mut inventory = Inventory::default();
        assert_eq!(inventory.to_text().unwrap(), "{\"schema\":1,\"objects\":[]}\n");
        for (bytes, name) in [("b", "bash 5.2 (amd64)"), ("a", "")] {
            inventory.objects.insert(Digest::of(bytes.as_bytes()), About { size: 1, name: name.into() });
        }
        insta::assert_snapshot!(inventory.to_text().unwrap(), @r#"
        {"schema":1,"objects":[
        {"sha256":"3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d","size":1,"name":"bash 5.2 (amd64)"},
        {"sha256":"ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","size":1}
        ]}
        "#);
        assert_eq!(Inventory::parse(&inventory.to_text().unwrap()).unwrap(), inventory);
        assert!(inventory.has(&Digest::of(b"a"), 1) && !inventory.has(&Digest::of(b"a"), 2));
    }

    #[test]
    fn what_is_no_inventory_says_why() {
        let line = format!("{{\"sha256\":\"{}\",\"size\":1}}", Digest::of(b"a"));
        for (text, why) in [
            ("", "EOF while parsing"),
            ("{\"schema\":2,\"objects\":[]}", "its schema is 2, this imgbuild knows 1"),
            ("{\"schema\":1,\"objects\":[{\"sha256\":\"x\",\"size\":1}]}", "64 hex digits wanted"),
            (&format!("{{\"schema\":1,\"objects\":[{line},{line}]}}"), "twice"),
            ("{\"schema\":1,\"objects\":[],\"more\":1}", "unknown field `more`"),
        ] {
            let e = Inventory::parse(text).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        fs::write(&path, b"\xff").unwrap();
        assert!(Inventory::at(&path).unwrap_err().to_string().contains("is no inventory: it is not UTF-8"));
        assert!(Inventory::at(dir.path()).unwrap_err().to_string().contains("neither an inventory"));
        let e = Inventory::at(&dir.path().join("none")).unwrap_err();
        assert_eq!(crate::error::kind(&e).exit_code(), 1);
    }

    #[test]
    fn a_listing_tells_objects_from_strangers() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"x");
        let path = place(dir.path(), &digest);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, b"x").unwrap();
        fs::write(path.with_extension("part"), b"").unwrap();
        std::os::unix::fs::symlink(&path, place(dir.path(), &digest).with_file_name("0".repeat(62))).unwrap();
        fs::create_dir(dir.path().join("AB")).unwrap();
        fs::write(dir.path().join("ab"), b"").unwrap();
        let listing = Listing::of(dir.path()).unwrap();
        assert_eq!(listing.inventory.objects.keys().collect::<Vec<_>>(), [&digest]);
        assert_eq!(listing.inventory.bytes(), 1);
        assert_eq!(listing.strangers.len(), 4, "{:?}", listing.strangers);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = Inventory::parse(&text);
        }

        #[test]
        fn any_name_reads_back(name in "\\PC{0,12}", size: u64) {
            let about = About { size, name };
            let inventory = Inventory { objects: BTreeMap::from([(Digest::of(b"x"), about)]) };
            prop_assert_eq!(Inventory::parse(&inventory.to_text().unwrap()).unwrap(), inventory);
        }
    }
}

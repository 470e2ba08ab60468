// SPDX-License-Identifier: MIT OR Apache-2.0

//! What archives have: `Packages` indices read into one [`Universe`]. Keeps only what resolving needs, as an archive
//! has some 60 000 packages. Knows nothing of how an index was fetched or verified.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::BufRead;

use anyhow::{Context, Result};

use super::relation::{Op, Relation, groups};
use super::version::compare;
use crate::error::Failure;
use crate::store::Digest;

/// One binary package in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: Box<str>,
    /// Its version.
    pub version: Box<str>,
    /// Its architecture, or `all`.
    pub architecture: Box<str>,
    /// Number of the suite it was found in, see [`Universe::suites`].
    pub suite: u8,
    /// `Pre-Depends` and `Depends`.
    pub depends: Box<str>,
    /// `Provides`.
    pub provides: Box<str>,
    /// `Conflicts` and `Breaks`.
    pub conflicts: Box<str>,
    /// Path relative to the archive's root.
    pub path: Box<str>,
    /// Size of the package file.
    pub size: u64,
    /// sha256 of the package file.
    pub sha256: Digest,
    /// Whether every system has it.
    pub essential: bool,
    /// 0 for required, 4 for extra.
    pub priority: u8,
}

/// All packages of some suites, for one architecture.
#[derive(Debug, Default)]
pub struct Universe {
    /// The suites, in the order they were added.
    pub suites: Vec<String>,
    /// Date of the newest of them, seconds since 1970.
    pub date: u32,
    packages: Vec<Package>,
    /// Package numbers by name, the highest version first.
    names: HashMap<Box<str>, Vec<u32>>,
    /// Who provides a virtual package.
    providers: HashMap<Box<str>, Vec<u32>>,
}

impl Universe {
    /// Adds the packages of an index of `suite`.
    ///
    /// # Errors
    /// If the index cannot be read or a package in it has no name, version, path, size or sha256.
    pub fn add(&mut self, suite: &str, index: impl BufRead) -> Result<()> {
        let number = match self.suites.iter().position(|known| known == suite) {
            Some(number) => number,
            None => {
                self.suites.push(suite.to_owned());
                self.suites.len() - 1
            }
        };
        let number = u8::try_from(number).context("more than 256 suites")?;
        read_packages(index, |mut package| {
            package.suite = number;
            self.packages.push(package);
        })
        .with_context(|| format!("reading the package index of {suite}"))
    }

    /// Makes lookups possible, after the last [`Universe::add`].
    pub fn finish(&mut self) {
        self.names.clear();
        self.providers.clear();
        for (number, package) in self.packages.iter().enumerate() {
            self.names.entry(package.name.clone()).or_default().push(number as u32);
        }
        let packages = &self.packages;
        #[allow(clippy::iter_over_hash_type, reason = "each value is sorted by itself")]
        for numbers in self.names.values_mut() {
            // Of equal versions the one added first wins: suites are named in order of preference.
            numbers.sort_by(|a, b| compare(&packages[*b as usize].version, &packages[*a as usize].version));
        }
        for (number, package) in packages.iter().enumerate() {
            for relation in groups(&package.provides).flatten() {
                self.providers.entry(relation.name.into()).or_default().push(number as u32);
            }
        }
        #[allow(clippy::iter_over_hash_type, reason = "each value is sorted by itself")]
        for providers in self.providers.values_mut() {
            providers.sort_by_key(|number| {
                let package = &packages[*number as usize];
                (package.priority, package.name.clone(), Reverse(*number))
            });
            providers.dedup();
        }
    }

    /// How many packages there are.
    pub fn len(&self) -> usize {
        self.packages.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// The package with this number.
    pub(super) fn package(&self, number: u32) -> &Package {
        &self.packages[number as usize]
    }

    /// All numbers.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        0..self.packages.len() as u32
    }

    /// The versions of a real package, the highest first.
    pub(super) fn versions(&self, name: &str) -> &[u32] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    /// Who provides a virtual package, the most important first.
    pub(super) fn providers(&self, name: &str) -> &[u32] {
        self.providers.get(name).map_or(&[], Vec::as_slice)
    }
}

impl Package {
    /// Whether this package satisfies the relation, by its name or by what it provides. Only a versioned `Provides`
    /// satisfies a versioned relation (Policy 7.5).
    pub fn satisfies(&self, relation: &Relation<'_>) -> bool {
        if *self.name == *relation.name {
            return relation.allows(&self.version);
        }
        groups(&self.provides).flatten().filter(|provided| provided.name == relation.name).any(|provided| {
            match (relation.constraint, provided.constraint) {
                (None, _) => true,
                (Some(_), Some((Op::Equal, version))) => relation.allows(version),
                (Some(_), _) => false,
            }
        })
    }
}

/// Reads an index, a line at a time.
fn read_packages(mut index: impl BufRead, mut each: impl FnMut(Package)) -> Result<()> {
    let mut line = Vec::new();
    let mut draft = Draft::default();
    loop {
        line.clear();
        let n = index.read_until(b'\n', &mut line).context("reading an index")?;
        let text = line.trim_ascii_end();
        if !text.is_empty() {
            draft.line(text)?;
        } else if draft.started {
            each(std::mem::take(&mut draft).finish()?);
        }
        if n == 0 {
            return Ok(());
        }
    }
}

/// A package while its paragraph is read.
#[derive(Default)]
struct Draft {
    started: bool,
    name: String,
    version: String,
    architecture: String,
    depends: String,
    provides: String,
    conflicts: String,
    path: String,
    size: Option<u64>,
    sha256: Option<Digest>,
    essential: bool,
    priority: Option<u8>,
    /// Which field a continuation line belongs to.
    current: Option<Field>,
}

#[derive(Clone, Copy)]
enum Field {
    Depends,
    Provides,
    Conflicts,
}

impl Draft {
    fn line(&mut self, line: &[u8]) -> Result<()> {
        self.started = true;
        if matches!(line[0], b' ' | b'\t') {
            if let Some(field) = self.current {
                self.relation(field, line);
            }
            return Ok(());
        }
        self.current = None;
        let Some(colon) = line.iter().position(|b| *b == b':') else { return Ok(()) };
        let (key, value) = (&line[..colon], line[colon + 1..].trim_ascii_start());
        let text = || String::from_utf8_lossy(value).into_owned();
        match key {
            b"Package" => self.name = text(),
            b"Version" => self.version = text(),
            b"Architecture" => self.architecture = text(),
            b"Filename" => self.path = text(),
            b"Size" => self.size = text().parse().ok(),
            b"SHA256" => self.sha256 = text().parse().ok(),
            b"Essential" => self.essential = value == b"yes",
            b"Priority" => {
                self.priority = [&b"required"[..], b"important", b"standard", b"optional"]
                    .iter()
                    .position(|known| *known == value)
                    .map(|number| number as u8);
            }
            b"Depends" | b"Pre-Depends" => self.relation(Field::Depends, value),
            b"Provides" => self.relation(Field::Provides, value),
            b"Conflicts" | b"Breaks" => self.relation(Field::Conflicts, value),
            _ => {}
        }
        Ok(())
    }

    fn relation(&mut self, field: Field, value: &[u8]) {
        let joined = self.current.is_some();
        self.current = Some(field);
        let target = match field {
            Field::Depends => &mut self.depends,
            Field::Provides => &mut self.provides,
            Field::Conflicts => &mut self.conflicts,
        };
        if !target.is_empty() && !joined {
            target.push_str(", ");
        }
        target.push_str(&String::from_utf8_lossy(value));
    }

    fn finish(self) -> Result<Package> {
        let name = self.name;
        let missing = |what: &str| Failure::verification(format!("package `{name}` of the index has no valid {what}"));
        for (value, what) in [
            (&name, "Package"),
            (&self.version, "Version"),
            (&self.architecture, "Architecture"),
            (&self.path, "Filename"),
        ] {
            if value.is_empty() {
                return Err(missing(what).into());
            }
        }
        Ok(Package {
            size: self.size.ok_or_else(|| missing("Size"))?,
            sha256: self.sha256.ok_or_else(|| missing("SHA256"))?,
            version: self.version.into(),
            architecture: self.architecture.into(),
            suite: 0,
            depends: self.depends.into(),
            provides: self.provides.into(),
            conflicts: self.conflicts.into(),
            path: self.path.into(),
            essential: self.essential,
            priority: self.priority.unwrap_or(4),
            name: name.into(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INDEX: &str = "\
Package: mawk
Version: 1.3.4-1
Architecture: amd64
Priority: required
Pre-Depends: libc6 (>= 2.34)
Depends: libm,
 libn
Provides: awk
Description: a
 Depends: not a field
Filename: pool/main/m/mawk/mawk.deb
Size: 12
SHA256: 0000000000000000000000000000000000000000000000000000000000000001


Package: mawk
Version: 1.3.4-2
Architecture: amd64
Essential: yes
Filename: pool/x.deb
Size: 13
SHA256: 0000000000000000000000000000000000000000000000000000000000000002
";

    #[test]
    fn fields_are_read_and_the_highest_version_comes_first() {
        let mut universe = Universe::default();
        universe.add("test", INDEX.as_bytes()).unwrap();
        universe.finish();
        assert_eq!(universe.len(), 2);
        let versions: Vec<_> = universe.versions("mawk").iter().map(|n| &*universe.package(*n).version).collect();
        assert_eq!(versions, ["1.3.4-2", "1.3.4-1"]);
        let old = universe.package(0);
        assert_eq!(&*old.depends, "libc6 (>= 2.34), libm, libn");
        assert_eq!((old.size, old.priority, old.essential), (12, 0, false));
        assert_eq!(universe.providers("awk").len(), 1);
        assert!(universe.package(1).essential);
    }

    #[test]
    fn an_incomplete_package_is_named() {
        let mut universe = Universe::default();
        let e = universe.add("test", "Package: x\nVersion: 1\nArchitecture: all\nFilename: y\n".as_bytes());
        assert!(format!("{:#}", e.unwrap_err()).contains("package `x` of the index has no valid Size"));
    }

    proptest! {
        #[test]
        fn it_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Universe::default().add("test", &bytes[..]);
        }

        #[test]
        fn lines_never_panic(text in "((Package|Depends|Size|SHA256|Version| ):?[ a-z0-9(),|]{0,8}\n){0,12}") {
            let _ = Universe::default().add("test", text.as_bytes());
        }
    }
}

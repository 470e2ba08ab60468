// SPDX-License-Identifier: MIT OR Apache-2.0

//! The two documents of a repository that matter here: `repomd.xml`, which says where the list of packages is, and that list,
//! `primary.xml`. Formats: those of createrepo_c (doc/, and the schemas of its tests). Reads text, and fetches nothing.

use std::io::BufRead;

use anyhow::{Context, Result, bail, ensure};

use super::version::Evr;
use super::xml::{Part, Tag, Xml};
use crate::error::Failure;
use crate::store::Digest;

/// Of `repomd.xml`, which has some ten entries.
pub(super) const REPOMD_LIMIT: u64 = 4 << 20;
/// Of a list of packages as it is downloaded: Fedora's, with some 70 000 packages, has 20 MB.
const PRIMARY_LIMIT: u64 = 512 << 20;
/// Of the same, decompressed: eight times as much.
const PRIMARY_TEXT_LIMIT: u64 = 4 << 30;
/// Of what one package provides and requires: those of a kernel with all its modules are some ten thousand.
const MOST_ENTRIES: usize = 200_000;

/// Where the list of packages is, and what it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Primary {
    /// Path relative to the repository.
    pub(super) path: String,
    pub(super) sha256: Digest,
    pub(super) size: u64,
}

/// A package of the list. What only a package that is taken needs is checked by [`Package::file`].
#[derive(Debug, Default)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) architecture: String,
    pub(super) version: Option<Evr>,
    checksum: (String, String),
    size: Option<u64>,
    path: Option<String>,
    /// Another repository that the path is relative to.
    base: Option<String>,
    /// Names of what it provides, and those of its files that the list has.
    pub(super) provides: Vec<String>,
    /// Names of what it requires.
    pub(super) requires: Vec<String>,
}

/// Where a package is, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackageFile {
    pub(super) path: String,
    pub(super) sha256: Digest,
    pub(super) size: u64,
}

/// What `repomd.xml` says of the list of packages.
pub(super) fn repomd(text: &[u8]) -> Result<Primary> {
    let mut xml = Xml::new(text, REPOMD_LIMIT);
    // Names of the elements around, and of the `data` under way its type, checksum, path and size.
    let (mut around, mut data) = (Vec::new(), Data::default());
    while let Some(part) = xml.pull()? {
        match part {
            Part::Open(tag) => {
                around.push(tag.name().to_owned());
                match names(&around)[..] {
                    ["repomd", "data"] => {
                        data = Data { kind: tag.attribute("type")?.unwrap_or_default(), ..Data::default() };
                    }
                    ["repomd", "data", "checksum"] => data.checksum.0 = tag.attribute("type")?.unwrap_or_default(),
                    ["repomd", "data", "location"] => {
                        (data.path, data.base) = (tag.attribute("href")?, tag.attribute("xml:base")?);
                    }
                    _ => {}
                }
            }
            Part::Text(text) => match names(&around)[..] {
                ["repomd", "data", "checksum"] => data.checksum.1 += &text,
                ["repomd", "data", "size"] => data.size += &text,
                _ => {}
            },
            Part::Close => {
                let done = names(&around) == ["repomd", "data"] && data.kind == "primary";
                around.pop();
                if done {
                    return data.primary().context("its entry `primary`");
                }
            }
        }
    }
    bail!("it names no list of packages (`<data type=\"primary\">`)")
}

/// An entry of `repomd.xml`.
#[derive(Default)]
struct Data {
    kind: String,
    checksum: (String, String),
    path: Option<String>,
    base: Option<String>,
    size: String,
}

impl Data {
    fn primary(self) -> Result<Primary> {
        ensure!(self.base.is_none(), "lies in another repository (xml:base)");
        let size: u64 = self.size.trim().parse().context("has no size, or one that is no number")?;
        ensure!(size <= PRIMARY_LIMIT, "has {size} bytes, more than any list of packages");
        let path = self.path.context("has no place (`<location href=…>`)")?;
        Ok(Primary { path: plain(path)?, sha256: sha256(&self.checksum)?, size })
    }
}

/// Gives every binary package of a list to `visit`.
///
/// # Errors
/// If the text is no such list; those of `visit`.
pub(super) fn packages(text: impl BufRead, mut visit: impl FnMut(Package) -> Result<()>) -> Result<()> {
    let mut xml = Xml::new(text, PRIMARY_TEXT_LIMIT);
    let (mut around, mut package, mut is_list) = (Vec::new(), Package::default(), false);
    while let Some(part) = xml.pull()? {
        match part {
            Part::Open(tag) => {
                around.push(Element::of(tag.name()));
                is_list |= around == [Element::Metadata];
                package.open(&around, &tag)?;
            }
            Part::Text(text) => package.text(&around, &text),
            Part::Close => {
                let done = around == [Element::Metadata, Element::Package];
                around.pop();
                if done {
                    let package = std::mem::take(&mut package);
                    ensure!(!package.name.is_empty() && !package.architecture.is_empty(), "a package without a name");
                    ensure!(package.version.is_some(), "package {} has no version", package.name);
                    visit(package)?;
                }
            }
        }
    }
    ensure!(is_list, "it is no list of packages (`<metadata>`)");
    Ok(())
}

/// The elements of a list of packages that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Metadata,
    Package,
    Name,
    Architecture,
    Version,
    Checksum,
    Size,
    Location,
    Format,
    Provides,
    Requires,
    Entry,
    File,
    Other,
}

impl Element {
    fn of(name: &str) -> Self {
        match name {
            "metadata" => Self::Metadata,
            "package" => Self::Package,
            "name" => Self::Name,
            "arch" => Self::Architecture,
            "version" => Self::Version,
            "checksum" => Self::Checksum,
            "size" => Self::Size,
            "location" => Self::Location,
            "format" => Self::Format,
            "provides" => Self::Provides,
            "requires" => Self::Requires,
            "entry" => Self::Entry,
            "file" => Self::File,
            _ => Self::Other,
        }
    }
}

/// What is inside of a package, if we are.
fn inside(around: &[Element]) -> &[Element] {
    match around {
        [Element::Metadata, Element::Package, inside @ ..] => inside,
        _ => &[],
    }
}

impl Package {
    fn open(&mut self, around: &[Element], tag: &Tag) -> Result<()> {
        use Element as E;
        match inside(around) {
            [E::Version] => {
                let get = |name: &str| Ok::<_, anyhow::Error>(tag.attribute(name)?.unwrap_or_default());
                let epoch = get("epoch")?;
                let epoch = if epoch.is_empty() { Ok(0) } else { epoch.parse() };
                let epoch = epoch.with_context(|| format!("the epoch of package {} is no number", self.name))?;
                self.version = Some(Evr { epoch, version: get("ver")?, release: get("rel")? });
            }
            [E::Checksum] => self.checksum.0 = tag.attribute("type")?.unwrap_or_default(),
            [E::Size] => self.size = tag.attribute("package")?.and_then(|size| size.parse().ok()),
            [E::Location] => (self.path, self.base) = (tag.attribute("href")?, tag.attribute("xml:base")?),
            [E::Format, list @ (E::Provides | E::Requires), E::Entry] => {
                let list = if *list == E::Provides { &mut self.provides } else { &mut self.requires };
                list.push(tag.attribute("name")?.unwrap_or_default());
            }
            [E::Format, E::File] => self.provides.push(String::new()),
            _ => {}
        }
        let entries = self.provides.len() + self.requires.len();
        ensure!(entries <= MOST_ENTRIES, "package {} provides and requires more than any package", self.name);
        Ok(())
    }

    fn text(&mut self, around: &[Element], text: &str) {
        use Element as E;
        match inside(around) {
            [E::Name] => self.name += text,
            [E::Architecture] => self.architecture += text,
            [E::Checksum] => self.checksum.1 += text,
            [E::Format, E::File] => {
                if let Some(file) = self.provides.last_mut() {
                    *file += text;
                }
            }
            _ => {}
        }
    }

    /// Its version; the list gives no package without one.
    pub(super) fn version(&self) -> Result<&Evr> {
        self.version.as_ref().with_context(|| format!("package {} has no version", self.name))
    }

    /// Where it is, and what it is.
    pub(super) fn file(&self) -> Result<PackageFile> {
        let file = || {
            if let Some(base) = &self.base {
                bail!("lies in another repository ({base}): name that one");
            }
            let path = self.path.clone().context("has no place (`<location href=…>`)")?;
            let size = self.size.context("has no size")?;
            Ok(PackageFile { path: plain(path)?, sha256: sha256(&self.checksum)?, size })
        };
        file().with_context(|| format!("package {}", self.name))
    }
}

fn names(around: &[String]) -> Vec<&str> {
    around.iter().map(String::as_str).collect()
}

fn sha256((kind, value): &(String, String)) -> Result<Digest> {
    if kind != "sha256" {
        bail!(
            Failure::verification(format!("has a checksum of kind `{kind}`, and only sha256 is taken"))
                .hint("let its publisher make the index with `createrepo_c --checksum sha256`")
        );
    }
    value.trim().parse().context("has an unreadable sha256")
}

/// A path that stays below the repository, and means the same in an address.
fn plain(path: String) -> Result<String> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '\\' | '?' | '#');
    let climbs = path.split('/').any(|part| matches!(part, "" | "." | ".."));
    ensure!(!climbs && !path.contains("://") && !path.contains(odd), "has the place `{path}`, which is no plain path");
    Ok(path)
}

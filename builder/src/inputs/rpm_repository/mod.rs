// SPDX-License-Identifier: MIT OR Apache-2.0

//! Repositories of RPM packages as createrepo_c makes them and dnf uses them: which files packages are, by name. Every byte that is
//! parsed, but for `repomd.xml` itself, has the sha256 that `repomd.xml` or the list of packages gives it; `repomd.xml` is
//! checked where there are keys.
//!
//! Not done: what packages require is not resolved, as only the root filesystem's own database knows what is there. What they
//! require and the repository has is said ([`Needs`]). Module streams, obsoletes, and lists of files beyond those in
//! `primary.xml` are not read.

mod index;
pub(crate) mod version;
mod xml;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;

use anyhow::{Context, Result};
use profiles::node::Architecture;

use self::index::{Package, PackageFile};
use self::version::Evr;
use super::deb::archive::decompress;
use super::deb::openpgp::Keyring;
use super::download::{Downloader, Item};
use crate::error::{self, Failure};
use crate::lock::{ItemKind, LockedItem};

const REPOMD: &str = "repodata/repomd.xml";
/// A signature has some hundred bytes, with a long key a thousand; several keys may have signed.
const SIGNATURE_LIMIT: u64 = 1 << 20;
/// Nobody reads more than this of a list.
const MOST_OTHERS: usize = 8;

/// How a repository is reached, and what is believed of it.
#[derive(Debug)]
pub struct Repository<'a> {
    /// Fetches.
    pub downloader: &'a Downloader,
    /// Where it may be had, the preferred place first, without a slash at the end.
    pub urls: &'a [String],
    /// Name of the input: what locked files are relative to.
    pub name: &'a str,
    /// Keys one of which must have signed the index, if that is wanted.
    pub keys: Option<&'a Keyring>,
}

/// What packages of a repository require and do not bring themselves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Packages of the repository that have it.
    pub packages: BTreeSet<String>,
    /// What none of the repository's packages has.
    pub nowhere: BTreeSet<String>,
}

/// A package that is taken.
struct Chosen {
    name: String,
    version: Evr,
    architecture: String,
    file: PackageFile,
    provides: Vec<String>,
    requires: Vec<String>,
}

impl Repository<'_> {
    /// The packages that `wanted` names (`name` or `name=version`), each in its highest version for `architecture`, and what
    /// they require.
    ///
    /// # Errors
    /// Names that the repository does not have, all of them; an index that is not signed, damaged, or too large.
    pub fn resolve(&self, wanted: &BTreeSet<String>, architecture: Architecture) -> Result<(Vec<LockedItem>, Needs)> {
        let (url, list) = self.list()?;
        let chosen = all_of(wanted, self.choose(&list, wanted, architecture)?, architecture, &url)?;
        let needs = self.needs(&list, &chosen, architecture)?;
        let item = |chosen: Chosen| LockedItem {
            kind: ItemKind::Rpm,
            name: chosen.name,
            version: chosen.version.to_string(),
            architecture: chosen.architecture,
            archive: self.name.to_owned(),
            path: chosen.file.path,
            size: chosen.file.size,
            sha256: chosen.file.sha256,
        };
        Ok((chosen.into_iter().map(item).collect(), needs))
    }

    /// The list of packages, in the store, and the first place that has a good one.
    fn list(&self) -> Result<(String, Item)> {
        let mut first = None;
        for url in self.urls {
            match self.list_from(url) {
                Ok(list) => return Ok((url.clone(), list)),
                Err(e) => first = first.or(Some(e)),
            }
        }
        Err(first.with_context(|| format!("the repository `{}` has no address", self.name))?)
    }

    fn list_from(&self, url: &str) -> Result<Item> {
        let place = format!("{url}/{REPOMD}");
        let get = |name: &str, url: String, limit| {
            self.downloader.fetch_unverified(&format!("{name} of the repository `{}`", self.name), &[url], limit)
        };
        let text = get("the index", place.clone(), index::REPOMD_LIMIT)?;
        if let Some(keys) = self.keys {
            let signature = get("the index's signature", format!("{place}.asc"), SIGNATURE_LIMIT).map_err(|error| {
                Failure::new(error::kind(&error), format!("{place} is not known to be signed"))
                    .hint("if the repository signs its packages and not its index, write `signed = \"packages\"` to the input")
                    .caused_by(error)
            })?;
            let key = keys.verify_detached(&signature, &text).map_err(|mut failure| {
                failure.message = format!("verifying {place}: {}", failure.message);
                failure
            })?;
            tracing::debug!("{place} is signed by {key}.");
        }
        let hint = "the address is that of the folder with `repodata/` in it: see what it shows";
        let primary =
            index::repomd(&text).map_err(|error| broken(&error, &format!("reading the index {place}"), hint))?;
        let missing_hint =
            "the repository is being updated or is incomplete: try again, or another with --mirror NAME=URL";
        let item = Item {
            urls: vec![format!("{url}/{}", primary.path)],
            name: primary.path,
            sha256: primary.sha256,
            size: primary.size,
            missing_hint: missing_hint.to_owned(),
        };
        self.downloader.fetch(std::slice::from_ref(&item))?;
        Ok(item)
    }

    /// Gives every package of the list to `visit`.
    fn read(&self, list: &Item, visit: impl FnMut(Package) -> Result<()>) -> Result<()> {
        let object = self.downloader.store().open_object(&list.sha256)?;
        let text = BufReader::with_capacity(256 << 10, decompress(object)?);
        let hint = "its publisher's index is broken: ask for it, or name another repository";
        let place = || format!("reading the list of packages {}", list.urls.join(", "));
        index::packages(text, visit).map_err(|error| broken(&error, &place(), hint).into())
    }

    /// By what is wanted, the best package, or what else there is of the name.
    fn choose(
        &self,
        list: &Item,
        wanted: &BTreeSet<String>,
        architecture: Architecture,
    ) -> Result<BTreeMap<String, Found>> {
        let by_name: BTreeMap<&str, (&String, Option<&str>)> = wanted
            .iter()
            .map(|text| match text.split_once('=') {
                Some((name, version)) => (name, (text, Some(version))),
                None => (text.as_str(), (text, None)),
            })
            .collect();
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        self.read(list, |package| {
            let Some((text, pinned)) = by_name.get(package.name.as_str()) else { return Ok(()) };
            let version = package.version()?;
            let fits = runs_on(&package, architecture) && pinned.is_none_or(|pinned| version.is(pinned));
            let found = found.entry((*text).clone()).or_default();
            if !fits {
                found.others.insert(format!("{}-{version}.{}", package.name, package.architecture));
                return Ok(());
            }
            let candidate = Chosen {
                version: version.clone(),
                file: package.file()?,
                name: package.name,
                architecture: package.architecture,
                provides: package.provides,
                requires: package.requires,
            };
            if found.best.as_ref().is_none_or(|best| is_better(&candidate, best)) {
                found.best = Some(candidate);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// What `chosen` require and none of them has.
    fn needs(&self, list: &Item, chosen: &[Chosen], architecture: Architecture) -> Result<Needs> {
        let own: BTreeSet<&str> = chosen.iter().flat_map(|package| &package.provides).map(String::as_str).collect();
        let mut open: BTreeMap<&str, Option<String>> = BTreeMap::new();
        // `rpmlib(…)` is about rpm itself; what begins with a bracket is an expression of several.
        let counts = |name: &&str| !own.contains(name) && !name.starts_with("rpmlib(") && !name.starts_with('(');
        for name in chosen.iter().flat_map(|package| &package.requires).map(String::as_str).filter(counts) {
            open.insert(name, None);
        }
        self.read(list, |package| {
            if runs_on(&package, architecture) {
                for name in &package.provides {
                    if let Some(by) = open.get_mut(name.as_str())
                        && by.as_ref().is_none_or(|by| *by > package.name)
                    {
                        *by = Some(package.name.clone());
                    }
                }
            }
            Ok(())
        })?;
        let mut needs = Needs::default();
        for (name, by) in open {
            match by {
                Some(package) => needs.packages.insert(package),
                None => needs.nowhere.insert(name.to_owned()),
            };
        }
        Ok(needs)
    }
}

/// An index that is not what it should be; what to do is `hint`, unless the error knows better. All in one failure: locking several
/// inputs takes nothing else.
fn broken(error: &anyhow::Error, doing: &str, hint: &str) -> Failure {
    let hint = error::hint(error).unwrap_or_else(|| hint.to_owned());
    Failure::verification(format!("{doing}: {error:#}")).hint(hint)
}

/// What a list has of a name.
#[derive(Default)]
struct Found {
    best: Option<Chosen>,
    /// What is for other machines, or of other versions.
    others: BTreeSet<String>,
}

fn runs_on(package: &Package, architecture: Architecture) -> bool {
    package.architecture == architecture.machine() || package.architecture == "noarch"
}

/// The higher version; of the same, the one built for the machine; of those, always the same one.
fn is_better(one: &Chosen, other: &Chosen) -> bool {
    let rank = |chosen: &Chosen| (chosen.architecture != "noarch", Reverse(chosen.file.path.clone()));
    one.version.compare(&other.version).then_with(|| rank(one).cmp(&rank(other))).is_gt()
}

/// The best packages of all that is wanted.
fn all_of(
    wanted: &BTreeSet<String>,
    mut found: BTreeMap<String, Found>,
    architecture: Architecture,
    url: &str,
) -> Result<Vec<Chosen>, Failure> {
    let (mut chosen, mut missing) = (Vec::new(), Vec::new());
    for text in wanted {
        let found = found.remove(text).unwrap_or_default();
        match found.best {
            Some(best) => chosen.push(best),
            None if found.others.is_empty() => missing.push(format!("`{text}`: there is no package of that name")),
            None => {
                let mut others: Vec<String> = found.others.into_iter().collect();
                let more = others.len().saturating_sub(MOST_OTHERS);
                others.truncate(MOST_OTHERS);
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                missing.push(format!("`{text}`: there is {}{more}", others.join(", ")));
            }
        }
    }
    if missing.is_empty() {
        return Ok(chosen);
    }
    let machine = architecture.machine();
    let message = format!("the repository {url} lacks packages for {machine}:\n  {}", missing.join("\n  "));
    Err(Failure::user(message)
        .hint(format!("write names as `dnf --repofrompath=x,{url} --repo=x list` shows them, with `=VERSION` at most")))
}

/// For tests/fuzz: reads `data` as either document of a repository.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(primary) = index::repomd(data) {
        assert!(!primary.path.starts_with('/') && !primary.path.split('/').any(|part| part == ".."), "{primary:?}");
    }
    let _ = index::packages(data, |package| {
        if let Ok(file) = package.file() {
            assert!(!file.path.starts_with('/') && !file.path.split('/').any(|part| part == ".."), "{file:?}");
        }
        Ok(())
    });
}

#[cfg(test)]
mod tests;

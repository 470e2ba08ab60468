// SPDX-License-Identifier: MIT OR Apache-2.0

//! Archives on mirrors: Release files fetched and verified, indices fetched by what the Release file says of them.
//! Every byte that is parsed, but for the Release file itself, has the sha256 that a signed file gives it.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result};

use super::archive::decompress;
use super::control::field;
use super::index::Universe;
use super::openpgp::Keyring;
use super::release::Release;
use super::version;
use crate::error::Failure;
use crate::inputs::download::{Downloader, Item};
use crate::inputs::mirror::{Keys, Mirror, Mirrors, archive_of};
use crate::lock::{ItemKind, LockedItem};
use crate::store::Digest;

/// A Release file has a line per index: bookworm's has 160 KB.
const RELEASE_LIMIT: u64 = 16 << 20;

/// How archives are reached and what is believed of them.
#[derive(Debug)]
pub struct Repository<'a> {
    /// Fetches.
    pub downloader: &'a Downloader,
    /// Who serves what.
    pub mirrors: &'a Mirrors,
    /// Keys to verify with, instead of those the host's apt uses.
    pub keyring: Option<Keyring>,
    /// Seconds since 1970, to see whether a suite is still valid.
    pub now: u32,
    /// Whether outdated suites are refused. (A mirror taken from apt's configuration also heeds apt's own setting.)
    pub check_valid_until: bool,
}

/// A suite as a mirror has it now, verified.
struct Suite {
    name: String,
    mirror: Mirror,
    release: Release,
}

impl Repository<'_> {
    /// Everything that the components of the suites have for an architecture.
    pub fn universe(&self, suites: &[String], components: &[String], architecture: &str) -> Result<Universe> {
        let mut found = Vec::new();
        let mut date = 0;
        for suite in suites {
            let suite = self.suite(suite)?;
            date = date.max(suite.release.seconds);
            for component in components {
                found.push((suite.name.clone(), suite.index(&format!("{component}/binary-{architecture}/Packages"))?));
            }
        }
        let items: Vec<Item> = found.iter().map(|(_, item)| item.clone()).collect();
        self.downloader.fetch(&items)?;
        let mut universe = Universe::default();
        universe.date = date;
        for (suite, item) in found {
            universe.add(&suite, self.open(&item)?)?;
        }
        universe.finish();
        Ok(universe)
    }

    /// The files of a source package: the highest version that is `version`, or whose upstream version begins with it.
    ///
    /// # Errors
    /// If there is none; says which versions there are.
    pub fn source(
        &self,
        suites: &[String],
        components: &[String],
        package: &str,
        version: &str,
    ) -> Result<Vec<LockedItem>> {
        let mut found: Vec<(String, Vec<LockedItem>)> = Vec::new();
        for name in suites {
            let suite = self.suite(name)?;
            for component in components {
                let item = suite.index(&format!("{component}/source/Sources"))?;
                self.downloader.fetch(std::slice::from_ref(&item))?;
                read_sources(self.open(&item)?, package, archive_of(name), &mut found)
                    .with_context(|| format!("reading the source index of {name}"))?;
            }
        }
        found.sort_by(|(a, _), (b, _)| version::compare(b, a));
        let all: Vec<String> = found.iter().map(|(version, _)| version.clone()).collect();
        match found.into_iter().find(|(found, _)| matches(found, version)) {
            Some((_, files)) => Ok(files),
            None => {
                let there = if all.is_empty() { "no version of it".to_owned() } else { all.join(", ") };
                let what = format!("there is no source package `{package}` {version} in {}", suites.join(", "));
                Err(Failure::user(what).hint(format!("these suites have {there}")).into())
            }
        }
    }

    fn open(&self, item: &Item) -> Result<impl BufRead> {
        let object = self.downloader.store().open_object(&item.sha256)?;
        let stream = decompress(object).with_context(|| format!("reading {}", item.name))?;
        Ok(BufReader::with_capacity(256 << 10, stream))
    }

    /// The suite from the first mirror that has a good one.
    fn suite(&self, name: &str) -> Result<Suite> {
        let mut first = None;
        for mirror in self.mirrors.of_suite(name)? {
            match self.suite_from(name, mirror) {
                Ok(suite) => return Ok(suite),
                Err(e) => first = first.or(Some(e)),
            }
        }
        Err(first.with_context(|| format!("no mirror is known for the suite `{name}`"))?)
    }

    fn suite_from(&self, name: &str, mirror: Mirror) -> Result<Suite> {
        let url = format!("{}/dists/{name}/InRelease", mirror.uri);
        let signed = self.downloader.fetch_unverified(
            &format!("the Release file of {name}"),
            std::slice::from_ref(&url),
            RELEASE_LIMIT,
        )?;
        let own;
        let keyring = match &self.keyring {
            Some(keyring) => keyring,
            None => {
                own = match &mirror.keys {
                    Keys::File(path) => Keyring::read(path)?,
                    Keys::Inline(text) => Keyring::parse(text.as_bytes(), "of apt's sources")?,
                };
                &own
            }
        };
        let now = (self.check_valid_until && mirror.check_valid_until).then_some(self.now);
        let about = |mut failure: Failure| {
            failure.message = format!("verifying {url}: {}", failure.message);
            failure
        };
        let signed = String::from_utf8_lossy(&signed);
        let verified = keyring.verify(&signed, now).map_err(about)?;
        let release = Release::parse(&verified.text).map_err(about)?;
        release.check(name, now).map_err(about)?;
        tracing::debug!("Suite {name} of {} is signed by {}.", release.date, verified.key);
        Ok(Suite { name: name.to_owned(), mirror, release })
    }
}

impl Suite {
    /// Where an index of this suite is.
    fn index(&self, path: &str) -> Result<Item> {
        let Some((path, sha256, size)) = self.release.index(path) else {
            let failure = Failure::user(format!("suite `{}` has no {path}", self.name));
            return Err(failure
                .hint(format!(
                    "it has the components {} and the architectures {}",
                    self.release.components.join(", "),
                    self.release.architectures.join(", ")
                ))
                .into());
        };
        let base = format!("{}/dists/{}", self.mirror.uri, self.name);
        let mut urls = vec![format!("{base}/{path}")];
        if self.release.by_hash {
            // What a name refers to changes while a mirror is updated; a hash does not.
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            urls.insert(0, format!("{base}/{dir}/by-hash/SHA256/{sha256}"));
        }
        let missing_hint = "the mirror is being updated or is incomplete: try again, or another with --mirror URL";
        Ok(Item { name: format!("{path} of {}", self.name), urls, sha256, size, missing_hint: missing_hint.to_owned() })
    }
}

/// Whether a version is the wanted one, or its upstream version begins with it: `1.20.2` is `1.20.2+dfsg-1`, but
/// `1.2` is not `1.20.2-1`. Where Debian went back to an older release without lowering the version number,
/// `1.20.5+really1.20.2-1`, the release is what follows.
fn matches(version: &str, wanted: &str) -> bool {
    let upstream = version::upstream(version);
    let really = upstream.split_once("+really").map_or(upstream, |(_, really)| really.trim_start_matches('-'));
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
    version == wanted || upstream == wanted || really.strip_prefix(wanted).is_some_and(ends)
}

/// Finds a source package in a `Sources` index, a paragraph at a time.
fn read_sources(
    mut index: impl BufRead,
    package: &str,
    archive: &str,
    found: &mut Vec<(String, Vec<LockedItem>)>,
) -> Result<()> {
    let (mut paragraph, mut line) = (String::new(), Vec::new());
    loop {
        line.clear();
        let n = index.read_until(b'\n', &mut line).context("reading an index")?;
        if !line.trim_ascii().is_empty() {
            paragraph.push_str(&String::from_utf8_lossy(&line));
            continue;
        }
        if field(&paragraph, "Package").as_deref() == Some(package) {
            found.push(source_files(&paragraph, package, archive)?);
        }
        paragraph.clear();
        if n == 0 {
            return Ok(());
        }
    }
}

fn source_files(paragraph: &str, package: &str, archive: &str) -> Result<(String, Vec<LockedItem>)> {
    let get = |name: &str| {
        field(paragraph, name).map(|value| value.trim().to_owned()).ok_or_else(|| {
            Failure::verification(format!("source package `{package}` of the index has no valid {name}"))
        })
    };
    let (version, directory) = (get("Version")?, get("Directory")?);
    let mut items = Vec::new();
    for line in get("Checksums-Sha256")?.lines().filter(|line| !line.trim().is_empty()) {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let entry = match parts.as_slice() {
            [sha256, size, name] => sha256.parse::<Digest>().ok().zip(size.parse().ok()).map(|(d, s)| (d, s, *name)),
            _ => None,
        };
        let (sha256, size, name) = entry
            .with_context(|| format!("source package `{package}` of the index has an unreadable file: `{line}`"))?;
        items.push(LockedItem {
            kind: ItemKind::Source,
            name: package.to_owned(),
            version: version.clone(),
            architecture: "source".to_owned(),
            archive: archive.to_owned(),
            path: format!("{directory}/{name}"),
            size,
            sha256,
        });
    }
    items.sort();
    Ok((version, items))
}

#[cfg(test)]
#[path = "repository_tests.rs"]
mod tests;

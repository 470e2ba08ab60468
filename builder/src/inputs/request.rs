// SPDX-License-Identifier: MIT OR Apache-2.0

//! From what is asked for to what is locked, and from what is locked to what is in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::node::Architecture;
use serde::Serialize;

use super::deb::index::Universe;
use super::deb::openpgp::Keyring;
use super::deb::repository::Repository;
use super::deb::resolve::{Wanted, resolve};
use super::download::{Downloader, Item};
use super::mirror::{Mirrors, archive_of};
use super::registry;
use super::rpm_repository::{self, Needs};
use super::url::{self, UrlRequest};
use crate::error::{ErrorKind, Failure};
use crate::lock::{ItemKind, Lock, LockedInput, LockedItem};
use crate::store::{Digest, step_key};

/// Bumped when the same request would be resolved differently, so that locks are made anew.
const RESOLVER_VERSION: u32 = 1;

/// Something to be locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Request {
    /// Packages and what they depend on.
    Deb(DebRequest),
    /// The files of a source package.
    Source(SourceRequest),
    /// A file beside the cluster file.
    File(FileRequest),
    /// Several of them, by their paths relative to the cluster file.
    Files {
        /// The paths.
        paths: BTreeSet<String>,
    },
    /// Packages of a repository.
    RpmRepository(RpmRepositoryRequest),
    /// A file at an address.
    Url(UrlRequest),
    /// Container images of registries.
    Oci(OciRequest),
}

/// Where packages come from, and how that is verified.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// Suites; the highest version of all of them wins.
    pub suites: Vec<String>,
    /// Components, normally `main`.
    pub components: Vec<String>,
    /// A keyring to verify with, instead of the one the host's apt uses. Changes nothing about the result.
    #[serde(skip)]
    pub keyring: Option<PathBuf>,
    /// Whether suites past their `Valid-Until` are refused. Changes nothing about the result.
    #[serde(skip)]
    pub check_valid_until: bool,
}

/// Packages and what they depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebRequest {
    /// Where from.
    #[serde(flatten)]
    pub origin: Origin,
    /// Debian's name of the architecture.
    pub architecture: String,
    /// Names of packages, each perhaps with `=version`.
    pub packages: BTreeSet<String>,
    /// Whether what they depend on comes too.
    pub dependencies: bool,
    /// Packages that count as there already: never pulled in.
    pub excludes: BTreeSet<String>,
    /// Whether to add all essential packages.
    pub essential: bool,
}

/// The files of a source package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceRequest {
    /// Where from.
    #[serde(flatten)]
    pub origin: Origin,
    /// Name of the source package.
    pub package: String,
    /// Its version, or what its upstream version begins with.
    pub version: String,
}

/// A file beside the cluster file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileRequest {
    /// Path relative to the cluster file.
    pub path: String,
    /// What it must be; without it, what it is when it is locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

/// Packages of a repository of RPM packages. Its name is that of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RpmRepositoryRequest {
    /// Its address by the cluster file; [`Mirrors`] may know another for it.
    pub url: String,
    /// The machine that the packages are for.
    pub architecture: Architecture,
    /// Names of packages, each perhaps with `=version`.
    pub packages: BTreeSet<String>,
    /// Paths of files with keys, relative to the cluster file; locked as files.
    pub keys: BTreeSet<String>,
    /// Whether one of the keys must have signed the index.
    pub index_signed: bool,
}

/// Container images of registries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OciRequest {
    /// The machine that the images are for.
    pub architecture: Architecture,
    /// Full references.
    pub images: BTreeSet<String>,
}

impl Request {
    /// What identifies this request in a lock.
    pub fn digest(&self) -> Result<Digest> {
        step_key("request", RESOLVER_VERSION, self)
    }
}

/// Which inputs are resolved anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Those the lock does not have, or that have changed.
    Stale,
    /// These as well.
    Named(BTreeSet<String>),
    /// All.
    All,
}

/// What locking and fetching need.
#[derive(Debug)]
pub struct Session<'a> {
    /// Fetches, and knows the store.
    pub downloader: &'a Downloader,
    /// Who serves what.
    pub mirrors: &'a Mirrors,
    /// The folder of the cluster file.
    pub base: &'a Path,
    /// The time, in seconds since 1970: only to see whether a suite is still valid.
    pub now: u32,
}

/// The digests of requests, by name: what [`Lock::check`] wants.
pub fn digests(requests: &BTreeMap<String, Request>) -> Result<BTreeMap<String, Digest>> {
    requests.iter().map(|(name, request)| Ok((name.clone(), request.digest()?))).collect()
}

impl Session<'_> {
    /// Resolves requests into a lock. Inputs of `previous` that are not to be updated are taken over.
    ///
    /// # Errors
    /// If something cannot be resolved: all such problems at once.
    pub fn lock(&self, requests: &BTreeMap<String, Request>, previous: Option<&Lock>, update: &Update) -> Result<Lock> {
        if let Update::Named(names) = update
            && let Some(unknown) = names.iter().find(|name| !requests.contains_key(*name))
        {
            let known: Vec<&str> = requests.keys().map(String::as_str).collect();
            return Err(Failure::user(format!("there is no input `{unknown}`"))
                .hint(format!("the inputs are {}", known.join(", ")))
                .into());
        }
        let mut lock = Lock::default();
        let mut universes = BTreeMap::new();
        let mut failures: Vec<Failure> = Vec::new();
        for (name, request) in requests {
            let digest = request.digest()?;
            let kept = previous.and_then(|lock| lock.inputs.get(name)).filter(|input| input.request == digest);
            let renew = match update {
                Update::Stale => false,
                Update::Named(names) => names.contains(name),
                Update::All => true,
            };
            let input = match kept {
                Some(kept) if !renew => Ok(kept.clone()),
                _ => self.resolve(name, request, digest, &mut universes),
            };
            match input.map_err(anyhow::Error::downcast::<Failure>) {
                Ok(input) => drop(lock.inputs.insert(name.clone(), input)),
                Err(Ok(mut failure)) if can_be_one_of_many(request, &failure) => {
                    failure.message = format!("input `{name}`: {}", failure.message);
                    failures.push(failure);
                }
                Err(Ok(failure)) => return Err(anyhow::Error::new(failure).context(format!("locking input `{name}`"))),
                Err(Err(other)) => return Err(other.context(format!("locking input `{name}`"))),
            }
        }
        match failures.len() {
            0 => Ok(lock),
            1 => Err(failures.swap_remove(0).into()),
            _ => {
                let messages: Vec<&str> = failures.iter().map(|failure| failure.message.as_str()).collect();
                let worst = failures.iter().find(|failure| failure.kind == ErrorKind::Verification);
                let failure = Failure::new(worst.map_or(ErrorKind::User, |failure| failure.kind), messages.join("\n"));
                let hint = failures.iter().find_map(|failure| failure.hint.clone()).unwrap_or_default();
                Err(failure.hint(hint).into())
            }
        }
    }

    fn resolve(
        &self,
        name: &str,
        request: &Request,
        digest: Digest,
        universes: &mut BTreeMap<(Origin, String), Universe>,
    ) -> Result<LockedInput> {
        let (suites, date, mut items) = match request {
            Request::Deb(deb) => {
                let key = (deb.origin.clone(), deb.architecture.clone());
                let universe = match universes.entry(key) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        // One at a time: an archive's index takes some 50 MB of memory.
                        let origin = &deb.origin;
                        entry.insert(self.repository(origin)?.universe(
                            &origin.suites,
                            &origin.components,
                            &deb.architecture,
                        )?)
                    }
                };
                (deb.origin.suites.clone(), universe.date, deb_items(universe, deb)?)
            }
            Request::Source(source) => {
                let origin = &source.origin;
                let files = self.repository(origin)?.source(
                    &origin.suites,
                    &origin.components,
                    &source.package,
                    &source.version,
                )?;
                (origin.suites.clone(), 0, files)
            }
            Request::File(file) => (Vec::new(), 0, vec![self.file_item(&file.path, file.sha256)?]),
            Request::Files { paths } => {
                let items = paths.iter().map(|path| self.file_item(path, None)).collect::<Result<_>>()?;
                (Vec::new(), 0, items)
            }
            Request::RpmRepository(repository) => (Vec::new(), 0, self.rpm_items(name, repository)?),
            Request::Url(wanted) => (Vec::new(), 0, vec![url::resolve(self, name, wanted)?]),
            Request::Oci(oci) => (Vec::new(), 0, registry::resolve(self.downloader, oci)?),
        };
        items.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
        Ok(LockedInput { request: digest, suites, date, items })
    }

    /// The packages of a repository, and the files with the keys that they are verified with.
    fn rpm_items(&self, name: &str, wanted: &RpmRepositoryRequest) -> Result<Vec<LockedItem>> {
        let mut items = wanted.keys.iter().map(|path| self.file_item(path, None)).collect::<Result<Vec<_>>>()?;
        let files = items.iter().map(|item| (item.path.as_str(), &item.sha256));
        let keys = Keyring::of_objects(self.downloader.store(), files.filter(|_| wanted.index_signed))?;
        let urls = self.mirrors.of_repository(name);
        let repository =
            rpm_repository::Repository { downloader: self.downloader, urls: &urls, name, keys: keys.as_ref() };
        let (packages, needs) = repository.resolve(&wanted.packages, wanted.architecture)?;
        say_needs(name, &needs);
        items.extend(packages);
        Ok(items)
    }

    /// The file at `path`, which must be `sha256` if that is given; else it is what it is now.
    fn file_item(&self, path: &str, sha256: Option<Digest>) -> Result<LockedItem> {
        let file = self.base.join(path);
        let (sha256, size) = match sha256 {
            Some(sha256) => (sha256, std::fs::metadata(file).map_err(|e| missing_file(path, e))?.len()),
            None => {
                let content = File::open(file).map_err(|e| missing_file(path, e))?;
                self.downloader.store().put_reader(content, None)?
            }
        };
        Ok(LockedItem {
            kind: ItemKind::File,
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            version: String::new(),
            architecture: String::new(),
            archive: String::new(),
            path: path.to_owned(),
            size,
            sha256,
        })
    }

    fn repository(&self, origin: &Origin) -> Result<Repository<'_>> {
        Ok(Repository {
            downloader: self.downloader,
            mirrors: self.mirrors,
            keyring: origin.keyring.as_deref().map(|path| Keyring::read(&self.base.join(path))).transpose()?,
            now: self.now,
            check_valid_until: origin.check_valid_until,
        })
    }

    /// Brings everything the lock names into the store, verified. No index is needed.
    ///
    /// # Errors
    /// If something cannot be had; offline, all that is missing.
    pub fn fetch(&self, lock: &Lock) -> Result<()> {
        let mut items = Vec::new();
        for (name, input) in &lock.inputs {
            for locked in &input.items {
                match locked.kind {
                    ItemKind::File => self.take_file(locked)?,
                    ItemKind::Rpm => items.push(self.rpm_item(locked)),
                    ItemKind::Url => items.push(url::item(self.mirrors, locked)),
                    ItemKind::Oci => items.push(self.oci_item(name, locked)?),
                    ItemKind::Deb | ItemKind::Source => items.push(self.item(locked, &input.suites)?),
                }
            }
        }
        self.downloader.fetch(&items)
    }

    fn item(&self, locked: &LockedItem, suites: &[String]) -> Result<Item> {
        let mut urls = Vec::new();
        for suite in suites.iter().filter(|suite| archive_of(suite) == locked.archive) {
            match self.mirrors.of_suite(suite) {
                Ok(mirrors) => urls.extend(mirrors.iter().map(|mirror| format!("{}/{}", mirror.uri, locked.path))),
                // Only what has to be fetched needs a mirror.
                Err(_) if self.downloader.is_offline() || self.downloader.store().has(&locked.sha256) => {}
                Err(e) => return Err(e.into()),
            }
        }
        urls.dedup();
        Ok(Item {
            name: locked.describe(),
            urls,
            sha256: locked.sha256,
            size: locked.size,
            missing_hint: format!(
                "archives drop a package when a newer one replaces it (debian-security at once): run `imgbuild lock \
                 --update` to move to what {} has now, or name a mirror that keeps old packages with --mirror URL",
                locked.archive
            ),
        })
    }

    fn rpm_item(&self, locked: &LockedItem) -> Item {
        let urls = self.mirrors.of_repository(&locked.archive);
        Item {
            name: locked.describe(),
            urls: urls.iter().map(|url| format!("{url}/{}", locked.path)).collect(),
            sha256: locked.sha256,
            size: locked.size,
            missing_hint: format!(
                "repositories drop a package when a newer one replaces it: run `imgbuild lock --update {0}` to move to what it has \
                 now, or name a copy that keeps old packages with --mirror {0}=URL",
                locked.archive
            ),
        }
    }

    /// A blob of an image of the input `name`.
    fn oci_item(&self, name: &str, locked: &LockedItem) -> Result<Item> {
        let addresses = self.downloader.registries().addresses(&locked.archive)?;
        Ok(Item {
            name: locked.describe(),
            urls: addresses.iter().map(|address| format!("{address}/{}", locked.path)).collect(),
            sha256: locked.sha256,
            size: locked.size,
            missing_hint: format!(
                "registries drop an image that has no tag any more: run `imgbuild lock --update {name}` to move to what its tags have \
                 now, or name a registry that keeps it with --mirror {}=URL",
                locked.archive
            ),
        })
    }

    fn take_file(&self, locked: &LockedItem) -> Result<()> {
        let store = self.downloader.store();
        if store.has(&locked.sha256) {
            return Ok(());
        }
        let path = self.base.join(&locked.path);
        let file = File::open(&path).map_err(|e| missing_file(&locked.path, e))?;
        store.put_reader(file, Some(&locked.sha256)).with_context(|| {
            let failure = Failure::verification(format!("file {} is not the one that was locked", locked.path));
            failure.hint(
                "bring back the file; or correct its sha256 in the cluster file, if it has one, or else run `imgbuild \
                 lock --update` with the name of the input",
            )
        })?;
        Ok(())
    }
}

/// What the packages of a repository require is left to whoever made the root.
fn say_needs(name: &str, needs: &Needs) {
    let list = |names: &BTreeSet<String>| Vec::from_iter(names.iter().map(String::as_str)).join(", ");
    if !needs.packages.is_empty() {
        tracing::info!(
            "input `{name}`: its packages require these, which the root must have, or `packages` must name: {}",
            list(&needs.packages)
        );
    }
    if !needs.nowhere.is_empty() {
        tracing::info!(
            "input `{name}`: its packages require this too, which no package of the repository has: {}",
            list(&needs.nowhere)
        );
    }
}

/// Whether locking goes on to the next input, so that all of their problems are said at once.
fn can_be_one_of_many(request: &Request, failure: &Failure) -> bool {
    let is_contradiction =
        matches!(request, Request::Url(_) | Request::Oci(_)) && failure.kind == ErrorKind::Verification;
    failure.kind == ErrorKind::User || is_contradiction
}

pub(super) fn missing_file(path: &str, error: std::io::Error) -> Failure {
    Failure::user(format!("reading the input file {path}"))
        .hint("its path is relative to the cluster file")
        .caused_by(error)
}

fn deb_items(universe: &Universe, deb: &DebRequest) -> Result<Vec<LockedItem>, Failure> {
    let wanted = Wanted {
        architecture: deb.architecture.clone(),
        packages: deb.packages.iter().cloned().collect(),
        excludes: deb.excludes.clone(),
        essential: deb.essential,
    };
    let item = |package: &super::deb::index::Package| LockedItem {
        kind: ItemKind::Deb,
        name: package.name.to_string(),
        version: package.version.to_string(),
        architecture: package.architecture.to_string(),
        archive: archive_of(&universe.suites[usize::from(package.suite)]).to_owned(),
        path: package.path.to_string(),
        size: package.size,
        sha256: package.sha256,
    };
    let names: BTreeSet<&str> =
        deb.packages.iter().map(|name| name.split_once('=').map_or(name.as_str(), |(name, _)| name)).collect();
    let named = |package: &&super::deb::index::Package| deb.dependencies || names.contains(&*package.name);
    Ok(resolve(universe, &wanted)?.into_iter().filter(named).map(item).collect())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Registries of container images: who they are, how they are asked, and what a reference stands for.
//!
//! Source: <https://github.com/opencontainers/distribution-spec> (spec.md, "Pull").

mod address;
mod challenge;
mod client;
mod credentials;
#[cfg(test)]
mod fake;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ureq::tls::{Certificate, PemItem, parse_pem};

use self::address::{API, origin};
use self::client::{Registry, said};
use self::credentials::Credentials;
pub use self::resolve::resolve;
use super::http::{Client, GetError, Response};
use super::mirror::{Mirrors, Proxies};
use crate::error::Failure;

/// Authorities that this machine trusts, where Debian has them; a variable names another file, as for OpenSSL.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const AUTHORITIES_VARIABLE: &str = "SSL_CERT_FILE";

/// Registries, by what a person says of them. Opens no connection before it is asked for one.
#[derive(Debug)]
pub struct Registries {
    proxies: Proxies,
    stall: Duration,
    mirrors: Mirrors,
    credentials: Credentials,
    /// This machine's own authorities.
    system: PathBuf,
    /// Files with further ones, by the registry's host in references.
    authorities: BTreeMap<String, BTreeSet<PathBuf>>,
    /// Those whose addresses have been asked for, by origin; made when they are first asked for something.
    known: Mutex<BTreeMap<String, Option<Arc<Registry>>>>,
}

impl Registries {
    /// Registries of which nothing is known: each is where its name says, and gives what it gives to everybody. `stall`
    /// is when a silent connection counts as dead.
    pub fn new(proxies: &Proxies, stall: Duration) -> Self {
        Self {
            proxies: proxies.clone(),
            stall,
            mirrors: Mirrors::default(),
            credentials: Credentials::default(),
            system: AUTHORITIES.into(),
            authorities: BTreeMap::new(),
            known: Mutex::default(),
        }
    }

    /// With what a person names for registries by `--mirror`, and the credentials that the environment, as `env` looks
    /// it up, has.
    #[must_use]
    pub fn discover(mut self, mirrors: &Mirrors, env: impl Fn(&str) -> Option<String>) -> Self {
        self.mirrors = mirrors.clone();
        if let Some(file) = env(AUTHORITIES_VARIABLE).filter(|file| !file.is_empty()) {
            self.system = file.into();
        }
        self.credentials = Credentials::discover(env);
        self
    }

    /// Has the authorities in `file` sign for the registry that references call `host`, too.
    pub fn trust(&mut self, host: &str, file: &Path) {
        self.authorities.entry(host.to_owned()).or_default().insert(file.to_owned());
    }

    /// The addresses of the registry that references call `host`, the preferred one first: what `/<repository>/blobs/…`
    /// is appended to.
    ///
    /// # Errors
    /// If what a person names for it cannot be one.
    pub(crate) fn addresses(&self, host: &str) -> Result<Vec<String>, Failure> {
        self.places(host).iter().map(|url| self.address(host, url)).collect()
    }

    /// What a person names for a registry, or else where it is.
    fn places(&self, host: &str) -> Vec<String> {
        let named = self.mirrors.of_registry(host);
        if named.is_empty() { vec![address::of_host(host)] } else { named }
    }

    fn address(&self, host: &str, url: &str) -> Result<String, Failure> {
        let own = origin(url).filter(|_| !url.contains(['@', '?', '#']));
        let own = own.ok_or_else(|| {
            Failure::user(format!("the mirror of the registry {host} is no plain http:// or https:// address")).hint(
                "write it like --mirror docker.io=https://mirror.example/docker.io; credentials come of `docker login`",
            )
        })?;
        let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
        // Somebody may have written the root of the API.
        let path = path.trim_matches('/');
        let path = path.strip_prefix("v2").filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
        let path = path.trim_matches('/');
        self.known().entry(own.clone()).or_default();
        Ok(if path.is_empty() { format!("{own}{API}") } else { format!("{own}{API}/{path}") })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Registry>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registry at an origin.
    fn registry(&self, own: &str) -> Result<Arc<Registry>, Failure> {
        let mut known = self.known();
        if let Some(Some(registry)) = known.get(own) {
            return Ok(registry.clone());
        }
        let is_here = |host: &str| self.places(host).iter().any(|url| origin(url).as_deref() == Some(own));
        let files: BTreeSet<&PathBuf> =
            self.authorities.iter().filter(|(host, _)| is_here(host)).flat_map(|(_, files)| files).collect();
        let client = if files.is_empty() {
            Client::new(&self.proxies, self.stall)
        } else {
            Client::trusting(&self.proxies, self.stall, &self.certificates(&files)?)
        };
        let client = client.map_err(|error| {
            Failure::user(format!("setting up connections to {own}"))
                .hint("correct the proxy settings")
                .caused_by(error)
        })?;
        let registry = Arc::new(Registry::new(own.to_owned(), client, self.credentials.clone()));
        known.insert(own.to_owned(), Some(registry.clone()));
        Ok(registry)
    }

    /// The certificates in `files`, each of which must have some, and those of this machine.
    fn certificates(&self, files: &BTreeSet<&PathBuf>) -> Result<Vec<Certificate<'static>>, Failure> {
        let mut all = std::fs::read(&self.system).map(|text| pem(&text)).unwrap_or_default();
        for file in files {
            let text = std::fs::read(file).map_err(|error| {
                Failure::user(format!("reading the certificates {}", file.display()))
                    .hint("`ca` of an input of kind \"oci\" is relative to the cluster file")
                    .caused_by(error)
            })?;
            let found = pem(&text);
            if found.is_empty() {
                let message = format!("{} has no certificate in PEM form", file.display());
                return Err(Failure::user(message).hint("it begins with -----BEGIN CERTIFICATE-----"));
            }
            all.extend(found);
        }
        Ok(all)
    }

    /// Asks for `url` as its registry wants it; `None` if it is not of one that has been asked for its addresses.
    pub(crate) fn get(&self, url: &str, offset: u64) -> Option<Result<Response, GetError>> {
        address::repository(url)?;
        let own = origin(url).filter(|own| self.known().contains_key(own))?;
        Some(self.registry(&own).map_err(GetError::Failed).and_then(|registry| registry.get(url, offset)))
    }

    /// The same for the whole of what an address of [`Self::addresses`] has: the answer, or the status that stands for
    /// there being none, with what is said of it.
    fn ask(&self, url: &str) -> Result<Result<Response, (u16, String)>, GetError> {
        let registry = self.registry(&origin(url).unwrap_or_default()).map_err(GetError::Failed)?;
        let response = registry.get(url, 0)?;
        match response.status {
            200 => Ok(Ok(response)),
            // Docker Hub and others count what the unknown take.
            429 => Err(GetError::Transient(format!("{}; who logs in may have more", said(response)))),
            408 | 425 | 500.. => Err(GetError::Transient(said(response))),
            status => Ok(Err((status, said(response)))),
        }
    }
}

fn pem(text: &[u8]) -> Vec<Certificate<'static>> {
    parse_pem(text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

/// For tests/fuzz: reads `data` as whatever a registry answers, and as a file with credentials.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    super::http::fuzz(data);
    client::fuzz(data);
    credentials::fuzz(data);
    resolve::fuzz(data);
    if let Ok(text) = std::str::from_utf8(data) {
        challenge::fuzz(text);
        address::fuzz(text);
    }
}

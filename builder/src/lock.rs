// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild.lock`: exactly which files a build is made from. Names no mirror: paths are relative to an archive, or are
//! addresses that the cluster file has. One line per file, sorted, so that a person can review what an update changes.

mod diff;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use diff::Diff;

use crate::error::Failure;
use crate::store::Digest;

/// The name of the lock, beside the cluster file.
pub const FILE_NAME: &str = "imgbuild.lock";

const SCHEMA: u32 = 1;

/// A lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of this format.
    schema: u32,
    /// Every input by name.
    #[serde(default, rename = "input")]
    pub inputs: BTreeMap<String, LockedInput>,
}

/// What one input came down to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedInput {
    /// Digest of what was asked for; another one means that the lock is stale.
    pub request: Digest,
    /// Suites it was found in.
    #[serde(default)]
    pub suites: Vec<String>,
    /// Date of the newest of them (`Date` of the Release file), seconds since 1970; 0 where there is none.
    #[serde(default)]
    pub date: u32,
    /// Its files, sorted by name.
    pub items: Vec<LockedItem>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedItem {
    /// What kind of file it is.
    pub kind: ItemKind,
    /// Name of the package, or of the input; of an image the full reference that the cluster file has.
    pub name: String,
    /// Its version; of an image the tag.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Its architecture: Debian's name, or `all`; of an RPM package rpm's name, or `noarch`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// The archive whose root `path` is relative to: `debian`, `debian-security`, the name of the input that is a
    /// repository, or the registry of an image as its reference has it. Without one, `path` is relative to the cluster
    /// file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub archive: String,
    /// Relative path; or the address, of a file that the cluster file names by one.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Its sha256.
    pub sha256: Digest,
}

/// What kind of file an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemKind {
    /// A binary package of Debian's.
    Deb,
    /// An RPM package of a repository.
    Rpm,
    /// A file of a source package.
    Source,
    /// A file beside the cluster file.
    File,
    /// A file at an address.
    Url,
    /// A blob of a container image: an index, a manifest, a configuration or a layer.
    Oci,
}

impl LockedItem {
    /// What it is, for messages: `bash 5.2.15-2 (amd64)`.
    pub fn describe(&self) -> String {
        match self.kind {
            ItemKind::Deb | ItemKind::Rpm => format!("{} {} ({})", self.name, self.version, self.architecture),
            ItemKind::Source => {
                let file = self.path.rsplit('/').next().unwrap_or_default();
                format!("{file} of source package {} {}", self.name, self.version)
            }
            ItemKind::File => format!("file {}", self.path),
            ItemKind::Url => self.path.clone(),
            ItemKind::Oci => {
                let mut parts = self.path.rsplit('/');
                let (digest, folder) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                format!("{} {digest} of image {}", if folder == "manifests" { "manifest" } else { "blob" }, self.name)
            }
        }
    }
}

impl Default for Lock {
    fn default() -> Self {
        Self { schema: SCHEMA, inputs: BTreeMap::new() }
    }
}

impl Lock {
    /// Reads the lock at `path`; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::io(format!("reading {}", path.display()), e).into()),
        };
        Ok(Some(Self::parse(&text).map_err(|mut failure| {
            failure.message = format!("reading {}: {}", path.display(), failure.message);
            failure
        })?))
    }

    /// Reads the text of a lock.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let hint = "restore it from version control, or remove it and run `imgbuild lock`";
        let lock: Self = toml::from_str(text).map_err(|e| {
            // The parser's own message names line and column.
            Failure::user(format!("it is no lock: {}", e.to_string().trim_end())).hint(hint)
        })?;
        if lock.schema != SCHEMA {
            let what = format!("its schema is {}, this imgbuild knows {SCHEMA}", lock.schema);
            return Err(
                Failure::user(what).hint("use the imgbuild that wrote it, or remove it and run `imgbuild lock`")
            );
        }
        Ok(lock)
    }

    /// Writes the lock to `path`: whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let writing = |e| Failure::io(format!("writing {}", path.display()), e);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(writing)?;
        file.write_all(self.to_text()?.as_bytes()).map_err(writing)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(writing)?;
        file.as_file().sync_all().map_err(writing)?;
        file.persist(path).map_err(|e| writing(e.error))?;
        Ok(())
    }

    /// The text of the lock. The same lock gives the same text.
    pub fn to_text(&self) -> Result<String> {
        let mut out = String::from(
            "# Written by imgbuild: the files this cluster is built from. Keep it in version control.\n\
             # `imgbuild lock --update` moves it to what the mirror has now.\n",
        );
        writeln!(out, "schema = {}", self.schema)?;
        for (name, input) in &self.inputs {
            writeln!(out, "\n[input.{}]", string(name))?;
            writeln!(out, "request = \"{}\"", input.request)?;
            let suites: Vec<String> = input.suites.iter().map(|suite| string(suite)).collect();
            writeln!(out, "suites = [{}]", suites.join(", "))?;
            if input.date != 0 {
                writeln!(out, "date = {}", input.date)?;
            }
            writeln!(out, "items = [")?;
            for item in &input.items {
                out.push_str("  { ");
                let kind = serde_json::to_value(item.kind).context("naming the kind of an input")?;
                write!(out, "kind = {kind}, name = {}", string(&item.name))?;
                for (key, value) in
                    [("version", &item.version), ("architecture", &item.architecture), ("archive", &item.archive)]
                {
                    if !value.is_empty() {
                        write!(out, ", {key} = {}", string(value))?;
                    }
                }
                let (path, size, sha256) = (string(&item.path), item.size, item.sha256);
                writeln!(out, ", path = {path}, size = {size}, sha256 = \"{sha256}\" }},")?;
            }
            writeln!(out, "]")?;
        }
        Ok(out)
    }

    /// All files of all inputs. One that several inputs have comes several times.
    pub fn items(&self) -> impl Iterator<Item = &LockedItem> {
        self.inputs.values().flat_map(|input| &input.items)
    }

    /// What differs between the lock and what is asked for now, by name of input: `name: why`. Empty if nothing does.
    pub fn stale(&self, requests: &BTreeMap<String, Digest>) -> BTreeMap<String, &'static str> {
        let mut out = BTreeMap::new();
        for (name, request) in requests {
            match self.inputs.get(name) {
                None => drop(out.insert(name.clone(), "is not locked")),
                Some(input) if input.request != *request => drop(out.insert(name.clone(), "has changed")),
                Some(_) => {}
            }
        }
        for name in self.inputs.keys().filter(|name| !requests.contains_key(*name)) {
            out.insert(name.clone(), "is no longer wanted");
        }
        out
    }

    /// # Errors
    /// If the lock was made from other inputs: says which differ.
    pub fn check(&self, requests: &BTreeMap<String, Digest>) -> Result<(), Failure> {
        let stale = self.stale(requests);
        if stale.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = stale.iter().map(|(name, why)| format!("input `{name}` {why}")).collect();
        Err(Failure::user(format!("the lock does not fit the cluster file: {}", list.join(", ")))
            .hint("run `imgbuild lock` to lock what changed; the rest stays as it is"))
    }
}

/// A TOML basic string: the `toml` crate would choose a form by content, some of which are no keys.
fn string(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// For tests/fuzz: what is read as a lock reads the same again once it is written.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    if let Ok(lock) = Lock::parse(text)
        && let Ok(written) = lock.to_text()
    {
        assert_eq!(Lock::parse(&written).ok().as_ref(), Some(&lock), "{written}");
        assert!(Diff::of(&lock, &lock).is_empty());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lock() -> Lock {
        let item = |kind, name: &str, archive: &str| LockedItem {
            kind,
            name: name.into(),
            version: "5.2.15-2+b2".into(),
            architecture: "amd64".into(),
            archive: archive.into(),
            path: format!("pool/main/{name}.deb"),
            size: 7,
            sha256: Digest::of(name.as_bytes()),
        };
        let mut lock = Lock::default();
        let suites = vec!["bookworm".to_owned(), "bookworm-security".to_owned()];
        let items = vec![item(ItemKind::Deb, "bash", "debian"), item(ItemKind::Deb, "curl", "debian-security")];
        lock.inputs.insert("os".into(), LockedInput { request: Digest::of(b"os"), suites, date: 1_768_038_912, items });
        let mut file = item(ItemKind::File, "motd", "");
        (file.version, file.architecture) = (String::new(), String::new());
        let files = LockedInput { request: Digest::of(b"f"), suites: vec![], date: 0, items: vec![file] };
        lock.inputs.insert("k8s.gcr.io/pause:3.2".into(), files);
        lock
    }

    #[test]
    fn the_text_is_stable_and_reads_back() {
        let text = lock().to_text().unwrap();
        assert_eq!(Lock::parse(&text).unwrap(), lock());
        insta::assert_snapshot!(text, @r#"
        # Written by imgbuild: the files this cluster is built from. Keep it in version control.
        # `imgbuild lock --update` moves it to what the mirror has now.
        schema = 1

        [input."k8s.gcr.io/pause:3.2"]
        request = "252f10c83610ebca1a059c0bae8255eba2f95be4d1d7bcfa89d7248a82d9f111"
        suites = []
        items = [
          { kind = "file", name = "motd", path = "pool/main/motd.deb", size = 7, sha256 = "5faab372d8fe1b009a0c4945bc68d38a90ff15acd62bc66d033be56714c03d9a" },
        ]

        [input."os"]
        request = "840a8dcfeae95966a870b0b5257997ce94cbc19dd979409d1671d2e93a9e0de6"
        suites = ["bookworm", "bookworm-security"]
        date = 1768038912
        items = [
          { kind = "deb", name = "bash", version = "5.2.15-2+b2", architecture = "amd64", archive = "debian", path = "pool/main/bash.deb", size = 7, sha256 = "37d2b12d5d9abc2a364ef9448767ee03938e383c0284193477dc7618f4b7c6c2" },
          { kind = "deb", name = "curl", version = "5.2.15-2+b2", architecture = "amd64", archive = "debian-security", path = "pool/main/curl.deb", size = 7, sha256 = "427e4b79b1f0fc90306cbe064b1297b21dc6835bfa656d3bf46bc156e3f24bb0" },
        ]
        "#);
    }

    #[test]
    fn it_is_written_whole_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(Lock::read(&path).unwrap(), None);
        lock().write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), Some(lock()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let e = lock().write(Path::new("/sys/imgbuild.lock")).unwrap_err();
        assert!(e.to_string().contains("writing /sys/imgbuild.lock"), "{e}");
        assert_eq!(crate::error::kind(&e).exit_code(), 3);
    }

    #[test]
    fn a_stale_lock_says_what_changed() {
        let requests = BTreeMap::from([("os".to_owned(), Digest::of(b"other")), ("new".to_owned(), Digest::of(b"n"))]);
        let e = lock().check(&requests).unwrap_err();
        assert_eq!(
            e.to_string(),
            "the lock does not fit the cluster file: input `k8s.gcr.io/pause:3.2` is no longer wanted, \
             input `new` is not locked, input `os` has changed"
        );
        let requests = BTreeMap::from([
            ("os".to_owned(), Digest::of(b"os")),
            ("k8s.gcr.io/pause:3.2".to_owned(), Digest::of(b"f")),
        ]);
        lock().check(&requests).unwrap();
    }

    #[test]
    fn a_broken_lock_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, "schema = 1\n[input.os]\nrequest = \"x\"\n").unwrap();
        let e = Lock::read(&path).unwrap_err();
        assert!(e.to_string().contains("imgbuild.lock: it is no lock: TOML parse error at line 3"), "{e}");
        std::fs::write(&path, "schema = 2\n").unwrap();
        let e = Lock::read(&path).unwrap_err();
        assert!(e.to_string().contains("its schema is 2, this imgbuild knows 1"), "{e}");
    }

    proptest! {
        #[test]
        fn any_names_read_back(name in "\\PC{0,12}", version in "\\PC{0,8}") {
            let mut lock = lock();
            let mut input = lock.inputs["os"].clone();
            input.items[0].version = version;
            lock.inputs.insert(name, input);
            prop_assert_eq!(Lock::parse(&lock.to_text().unwrap()).unwrap(), lock);
        }
    }
}

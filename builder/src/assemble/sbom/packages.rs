// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Debian's packages say of themselves beyond what an archive's index has: their source, their licences.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::copyright;
use crate::assemble::bundle;
use crate::inputs::deb::archive::{self, ArchiveKind};
use crate::store::{Digest, Store, step_key};
use crate::tree::Content;

/// Raised when the code below finds something else in the same packages.
const STEP_VERSION: u32 = 1;
/// Longest file that is read: copyright files of kernels and compilers have some 500 KiB.
const TEXT_MAX: u64 = 4 << 20;

/// What a package says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Its source package.
    pub source: String,
    /// The version of that.
    pub source_version: String,
    /// Short names of licences, where its copyright file is machine-readable.
    pub licenses: Vec<String>,
    /// Version of the operating system, if it has the file that says so.
    pub release: String,
    /// Those of its programs that a bundle may have.
    pub carried: Vec<String>,
}

impl Facts {
    /// Whether it has one of these programs.
    pub(super) fn has_any(&self, programs: &[&str]) -> bool {
        self.carried.iter().any(|own| programs.contains(&own.as_str()))
    }
}

/// What the packages in the store say of themselves.
///
/// # Errors
/// What is no package, or a damaged one.
pub(super) fn facts(store: &Store, objects: BTreeSet<Digest>) -> Result<BTreeMap<Digest, Facts>> {
    let key = step_key("package-facts", STEP_VERSION, &(&objects, bundle::PROGRAMS_OF_ROOT))?;
    let facts: Vec<Facts> = store.cached(&key, "what packages say of themselves", || {
        let objects: Vec<&Digest> = objects.iter().collect();
        objects.par_iter().map(|object| of(store, object)).collect::<Result<_>>()
    })?;
    Ok(objects.into_iter().zip(facts).collect())
}

fn of(store: &Store, object: &Digest) -> Result<Facts> {
    let control = archive::control(store, object).with_context(|| format!("reading package {object}"))?;
    let field = |name: &str| control.get(name).map(String::as_str);
    let name = field("Package").with_context(|| format!("package {object} does not say its name"))?;
    let version = field("Version").with_context(|| format!("package {name} does not say its version"))?;
    let (source, source_version) = source(name, version, field("Source"));
    let unpacked = archive::unpack(store, object)?;
    let text = |path: &str| -> Result<Option<String>> {
        let Some(entry) = unpacked.entries.iter().find(|entry| entry.path == path) else { return Ok(None) };
        let ArchiveKind::File { offset, len } = entry.kind else { return Ok(None) };
        if len > TEXT_MAX {
            return Ok(None);
        }
        let bytes = Content::Slice { object: unpacked.tar, offset, len }.read(store);
        Ok(String::from_utf8(bytes.with_context(|| format!("reading /{path} of {name}"))?).ok())
    };
    let carried = unpacked.entries.iter().filter_map(|entry| {
        let (folder, program) = entry.path.rsplit_once('/')?;
        let is_program = ["bin", "sbin", "usr/bin", "usr/sbin"].contains(&folder);
        (is_program && bundle::PROGRAMS_OF_ROOT.contains(&program)).then(|| program.to_owned())
    });
    Ok(Facts {
        source: source.to_owned(),
        source_version: source_version.to_owned(),
        licenses: text(&format!("usr/share/doc/{name}/copyright"))?
            .map_or_else(Vec::new, |text| copyright::licenses(&text)),
        release: text("usr/lib/os-release")?.map_or_else(String::new, |text| release(&text)),
        carried: carried.collect(),
    })
}

/// The source package by the field `Source`, `name` or `name (version)`; without it, both are those of the package.
fn source<'a>(name: &'a str, version: &'a str, field: Option<&'a str>) -> (&'a str, &'a str) {
    let Some(field) = field else { return (name, version) };
    match field.split_once('(') {
        Some((source, own)) => (source.trim(), own.trim_end().trim_end_matches(')').trim()),
        None => (field.trim(), version),
    }
}

/// The version in an os-release(5) file; the code name of a distribution that has no version yet.
fn release(text: &str) -> String {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned())
    };
    value("VERSION_ID").or_else(|| value("VERSION_CODENAME")).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::inputs::deb::fixtures;

    #[test]
    fn the_source_of_a_package_is_its_own_or_another() {
        assert_eq!(source("bash", "5.2-1", None), ("bash", "5.2-1"));
        assert_eq!(source("libc6", "2.36-9", Some("glibc")), ("glibc", "2.36-9"));
        assert_eq!(source("bash", "5.2-1+b2", Some("bash (5.2-1)")), ("bash", "5.2-1"));
    }

    #[test]
    fn the_release_is_a_version_or_a_code_name() {
        assert_eq!(release("NAME=x\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n"), "12");
        assert_eq!(release("VERSION_CODENAME=forky\nVERSION=1\n"), "forky");
        assert_eq!(release(""), "");
    }

    #[test]
    fn packages_are_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let copyright =
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: Expat\n";
        let files = [
            ("./usr/share/doc/runc/copyright", copyright),
            ("./usr/sbin/runc", "\x7fELF"),
            ("./usr/lib/os-release", "VERSION_ID=12\n"),
        ];
        let control = "Package: runc\nVersion: 1.1.5+ds1-1+b1\nSource: runc (1.1.5+ds1-1)\nArchitecture: amd64\n";
        let deb = fixtures::deb(control, "data.tar", &fixtures::tar(&files));
        let object = store.put_bytes(&deb).unwrap();
        let wanted = Facts {
            source: "runc".into(),
            source_version: "1.1.5+ds1-1".into(),
            licenses: vec!["Expat".into()],
            release: "12".into(),
            carried: vec!["runc".into()],
        };
        let found = facts(&store, BTreeSet::from([object])).unwrap();
        assert_eq!(found, BTreeMap::from([(object, wanted.clone())]));
        assert!(found[&object].has_any(&["runc"]) && !found[&object].has_any(&["etcd"]));
        // The step's record answers, where the package is gone.
        std::fs::remove_file(store.path(&object)).unwrap();
        assert_eq!(facts(&store, BTreeSet::from([object])).unwrap()[&object], wanted);
        assert!(facts(&store, BTreeSet::from([object, Digest::of(b"no package")])).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Small text formats: what Debian's archives and packages say in deb822, users, PAM, patches, names of images; and what
//! firstboot reads of a kernel, of disks and of certificates.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use firstboot::cert;
use firstboot::init::cmdline::Cmdline;
use firstboot::init::fnmatch;
use imgbuild::image::oci::reference;
use imgbuild::inputs::deb::index::Universe;
use imgbuild::inputs::deb::release::Release;
use imgbuild::inputs::deb::{control, relation, version};
use imgbuild::inputs::source::patch;
use imgbuild::tree::FileTree;
use imgbuild::tree::kmod_index::normalized_alias;
use imgbuild::tree::users::Users;

use crate::{SEPARATOR, parts};

/// Reads `data` as each of them.
pub fn run(data: &[u8]) {
    firstboot::fuzz::identity(data);
    diffs(data);
    let mut universe = Universe::default();
    if universe.add("suite", data).is_ok() {
        universe.finish();
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    for paragraph in control::paragraphs(text) {
        control::fields(paragraph).for_each(drop);
    }
    if let Ok(release) = Release::parse(text) {
        let _ = release.check("stable", Some(0));
        release.index("main/binary-amd64/Packages");
    }
    relations(text);
    versions(text);
    users(text);
    imgbuild::fuzz::pam(text);
    for line in text.lines().take(16) {
        let full = reference::completed(line);
        assert_eq!(reference::completed(&full), full, "completing is done once");
        assert!(full == line || reference::check(&full).is_ok(), "{full}");
        normalized_alias(line);
    }
    node(text);
}

fn relations(text: &str) {
    for relation in relation::groups(text).flatten() {
        relation.allows("1");
        let shown = relation.to_string();
        assert_eq!(relation::parse(&shown), Some(relation), "{shown}");
    }
}

fn versions(text: &str) {
    let words: Vec<&str> = text.split_whitespace().take(4).collect();
    for a in &words {
        assert_eq!(version::compare(a, a), Ordering::Equal, "{a}");
        for b in &words {
            assert_eq!(version::compare(a, b), version::compare(b, a).reverse(), "{a} {b}");
        }
    }
}

fn users(text: &str) {
    let (passwd, group) = text.split_once("\n====\n").unwrap_or((text, ""));
    let mut found = Users::parse(passwd, group).unwrap_or_default();
    if found.sysusers(&BTreeMap::from([("a.conf".to_owned(), text.to_owned())])).is_ok() {
        found.write(&mut FileTree::new()).expect("files of users can be written");
    }
}

fn diffs(data: &[u8]) {
    for file in patch::parse(data).into_iter().flatten() {
        assert!(!file.path.starts_with('/') && !file.path.split('/').any(|part| part == ".."), "{}", file.path);
        let _ = file.apply(Some(data));
        let _ = file.apply(None);
    }
}

fn node(text: &str) {
    let _ = Cmdline::parse(text);
    if let Some((pattern, name)) = text.split_once('\n') {
        fnmatch::matches(pattern.as_bytes(), name.as_bytes());
    }
    if let Ok(validity) = cert::validity(text) {
        cert::show_time(validity.from);
        cert::show_time(validity.until);
    }
    let _ = cert::decode_base64(text);
}

const PACKAGES: &str = "Package: mawk\nVersion: 1.3.4-1\nArchitecture: amd64\nPriority: required\nEssential: yes\n\
    Pre-Depends: libc6 (>= 2.34), a | b:any (<< 1~)\nProvides: awk (= 1)\nDescription: a\n b\n\
    Filename: pool/main/m/mawk/mawk.deb\nSize: 12\n\
    SHA256: 0000000000000000000000000000000000000000000000000000000000000001\n\n# comment\nPackage: b\n";
const RELEASE: &str = "Suite: stable\nCodename: bookworm\nDate: Sat, 10 Jan 2026 09:55:12 UTC\n\
    Valid-Until: Sat, 17 Jan 2026 09:55:12 UTC\nAcquire-By-Hash: yes\nArchitectures: all amd64\nComponents: main\nSHA256:\n \
    0000000000000000000000000000000000000000000000000000000000000001 12 main/binary-amd64/Packages.xz\n";
const USERS: &str = "root:x:0:0:root:/root:/bin/bash\n====\nroot:x:0:\nshadow:x:42:a,b\n";
const SYSUSERS: &str = "# c\nu etcd 901:902 \"etcd server\" /var/lib/etcd -\ng input - -\nm etcd input\nu! a - -\n";
const PAM: &str = "Name: Unix\nDefault: yes\nPriority: 256\nAuth-Type: Primary\nAuth:\n\t[success=end default=ignore]\tpam_unix.so\n\
    Auth-Initial:\n\tx\n$auth_primary\n";
const DIFF: &str = "--- a/f/x\n+++ b/f/x\n@@ -1,2 +1,3 @@ f\n a\n-b\n+c\n+d\n\\ No newline at end of file\n--- /dev/null\n+++ b/y\n@@ -0,0 +1 @@\n+y\n";
const NAMES: &str = "calico/cni:v3.26.1\nregistry.k8s.io/pause@sha256:\
    0000000000000000000000000000000000000000000000000000000000000001\nlocalhost:5000/a/b:c\n";
const CMDLINE: &str = "root=/dev/x imgbuild.disk=0C12D0E5-1111-4222-8333-444455556666 imgbuild.slot=b quiet\n";
const ALIASES: &str = "pci:v*d[!0-9a-f]?bc[02]sc*i*\npci:v00008086d0000100Esv\n";
/// As far as it is read (RFC 5280, 4.1): version, serial number, algorithm, issuer, validity.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
    MDEwL6ADAgECAgEBMAMGASowADAeFw0yNjAxMTAwOTU1MTJaFw0zNjAxMTAwOTU1MTJa\n-----END CERTIFICATE-----\n";

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [PACKAGES, RELEASE, USERS, SYSUSERS, PAM, DIFF, NAMES, CMDLINE, ALIASES, CERTIFICATE];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    assert_eq!(parts(USERS.as_bytes()).len(), 2, "{SEPARATOR:?}");
    // VPD page 0x89 of an ATA disk.
    let mut page = vec![0; 60 + 512];
    page[60 + 20..60 + 40].copy_from_slice(b"ES RAILNMUEBR 123   ");
    page[60 + 54..60 + 94].copy_from_slice(b"OMED L                                  ");
    seeds.push(page);
    seeds
}

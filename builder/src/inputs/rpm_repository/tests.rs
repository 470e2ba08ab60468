// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use p256::elliptic_curve::rand_core::OsRng;
use pgp::composed::{ArmorOptions, DetachedSignature, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::types::Password;
use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::inputs::deb::fixtures::{gzip, key, keyring, xz};
use crate::inputs::download::{Options, Progress};
use crate::inputs::fake_mirror::{FakeMirror, Mood};
use crate::inputs::mirror::Mirrors;
use crate::inputs::request::{Request, RpmRepositoryRequest, Session, Update};
use crate::inputs::rpm;
use crate::lock::Lock;
use crate::store::{Digest, Store};

/// Packages are not looked into before they are used: any bytes do for most tests.
fn bytes_of(path: &str) -> Vec<u8> {
    format!("package {path}").into_bytes()
}

/// An element `package` of a list; `more` goes into its `format`.
fn package(name: &str, architecture: &str, evr: (&str, &str, &str), more: &str) -> String {
    let ((epoch, version, release), path) = (evr, format!("Packages/{name}-{}-{}.{architecture}.rpm", evr.1, evr.2));
    let (sha256, size) = (Digest::of(&bytes_of(&path)), bytes_of(&path).len());
    format!(
        "<package type=\"rpm\">\n  <name>{name}</name>\n  <arch>{architecture}</arch>\n  \
         <version epoch=\"{epoch}\" ver=\"{version}\" rel=\"{release}\"/>\n  \
         <checksum type=\"sha256\" pkgid=\"YES\">{sha256}</checksum>\n  <summary>a &amp; b</summary>\n  \
         <time file=\"1\" build=\"1\"/><size package=\"{size}\" installed=\"1\" archive=\"1\"/>\n  \
         <location href=\"{path}\"/>\n  <format><rpm:license>GPL</rpm:license>{more}</format>\n</package>\n"
    )
}

fn entries(list: &str, names: &[&str]) -> String {
    let entries: String =
        names.iter().map(|name| format!("<rpm:entry name=\"{name}\" flags=\"EQ\" ver=\"1\"/>")).collect();
    format!("<rpm:{list}>{entries}</rpm:{list}>")
}

fn metadata(packages: &[String]) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<metadata xmlns=\"http://linux.duke.edu/metadata/common\" \
         xmlns:rpm=\"http://linux.duke.edu/metadata/rpm\" packages=\"{}\">\n{}</metadata>\n",
        packages.len(),
        packages.concat()
    )
}

/// Loongson's haproxy in several versions and shapes, and what goes with it.
fn packages() -> Vec<String> {
    let requires = ["libc.so.6()(64bit)", "/bin/sh", "haproxy-common", "lua(abi) &gt; 5", "rpmlib(X)", "(a or b)"];
    let needy = entries("provides", &["haproxy", "load-balancer"]) + &entries("requires", &requires);
    vec![
        package("haproxy", "loongarch64", ("0", "2.6.6", "1.ky11"), &needy),
        package("haproxy", "loongarch64", ("0", "2.6.10", "2.ky11"), &needy),
        package("haproxy", "loongarch64", ("0", "2.6.10~rc1", "9.ky11"), ""),
        package("haproxy", "x86_64", ("0", "3.0", "1.ky11"), ""),
        package("haproxy", "src", ("0", "2.6.10", "2.ky11"), ""),
        package("haproxy-common", "noarch", ("", "1", "1"), ""),
        package("ipset", "noarch", ("0", "9", "1"), ""),
        package("ipset", "loongarch64", ("1", "7.1", "2"), ""),
        package("glibc", "loongarch64", ("0", "2.38", "1"), &entries("provides", &["libc.so.6()(64bit)"])),
        package("bash", "loongarch64", ("0", "5", "1"), "<file>/etc/x</file><file type=\"\">/bin/sh</file>"),
        package("bash", "x86_64", ("0", "5", "1"), &entries("provides", &["lua(abi) &gt; 5"])),
    ]
}

fn repomd(primary: &[u8], name: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<repomd xmlns=\"http://linux.duke.edu/metadata/repo\">\n\
         <revision>1700000000</revision>\n<data type=\"filelists\"><location href=\"repodata/other\"/></data>\n\
         <data type=\"primary\">\n  <checksum type=\"sha256\">{}</checksum>\n  <open-checksum type=\"sha256\">0</open-checksum>\n  \
         <location href=\"repodata/{name}\"/>\n  <timestamp>1</timestamp>\n  <size>{}</size>\n</data>\n</repomd>\n",
        Digest::of(primary),
        primary.len()
    )
}

fn armored(key: &SignedSecretKey, bytes: &[u8]) -> String {
    let signature =
        DetachedSignature::sign_binary_data(OsRng, &**key, &Password::empty(), HashAlgorithm::Sha256, bytes);
    signature.unwrap().to_armored_string(ArmorOptions::default()).unwrap()
}

/// A repository on a mirror, and a place to build in.
struct World {
    mirror: FakeMirror,
    key: SignedSecretKey,
    downloader: Downloader,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (mirror, key, dir) = (FakeMirror::start(), key("vendor"), tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("vendor.gpg"), keyring(&[&key])).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let world = Self { mirror, key, downloader: downloader(&store, false), dir };
        world.publish(&metadata(&packages()));
        world
    }

    /// Publishes a list of packages, signed, and packages.
    fn publish(&self, list: &str) {
        let primary = gzip(list.as_bytes());
        self.publish_index(&primary, "primary.xml.gz", &repomd(&primary, "primary.xml.gz"));
        let paths = list.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for path in paths {
            self.mirror.put(&format!("repo/{path}"), bytes_of(path));
        }
    }

    fn publish_index(&self, primary: &[u8], name: &str, repomd: &str) {
        self.mirror.put(&format!("repo/repodata/{name}"), primary);
        self.mirror.put("repo/repodata/repomd.xml.asc", armored(&self.key, repomd.as_bytes()));
        self.mirror.put("repo/repodata/repomd.xml", repomd);
    }

    fn request(&self, packages: &[&str]) -> RpmRepositoryRequest {
        RpmRepositoryRequest {
            url: self.mirror.url("repo/"),
            architecture: Architecture::Loong64,
            packages: packages.iter().map(ToString::to_string).collect(),
            keys: ["vendor.gpg".to_owned()].into(),
            index_signed: true,
        }
    }

    fn mirrors(&self, overrides: &[String]) -> Mirrors {
        let mut mirrors = Mirrors::discover(overrides, self.dir.path(), |_| None).unwrap();
        mirrors.add_repository("kylin", &self.mirror.url("repo/"));
        mirrors
    }

    fn lock_with(&self, request: RpmRepositoryRequest, mirrors: &Mirrors) -> Result<Lock> {
        let requests = BTreeMap::from([("kylin".to_owned(), Request::RpmRepository(request))]);
        self.session(&self.downloader, mirrors).lock(&requests, None, &Update::Stale)
    }

    fn lock(&self, packages: &[&str]) -> Result<Lock> {
        self.lock_with(self.request(packages), &self.mirrors(&[]))
    }

    fn session<'a>(&'a self, downloader: &'a Downloader, mirrors: &'a Mirrors) -> Session<'a> {
        Session { downloader, mirrors, base: self.dir.path(), now: 1_768_050_000 }
    }

    /// Why nothing is locked, and the exit code.
    fn fails(&self, packages: &[&str]) -> (String, ErrorKind) {
        let error = self.lock(packages).unwrap_err();
        let hint = error::hint(&error).unwrap_or_default();
        (format!("{error:#} | {hint}"), error::kind(&error))
    }
}

fn downloader(store: &Store, offline: bool) -> Downloader {
    let options = Options { offline, backoff: Duration::from_millis(1), attempts: 2, ..Options::default() };
    Downloader::new(store, Mirrors::default().proxies(), options, Progress::hidden()).unwrap()
}

fn lines(lock: &Lock) -> Vec<String> {
    lock.inputs["kylin"]
        .items
        .iter()
        .map(|item| format!("{} {} {}", item.describe(), item.archive, item.path))
        .collect()
}

#[test]
fn the_highest_version_for_the_machine_is_locked_and_fetched() {
    let w = World::new();
    let lock = w.lock(&["haproxy", "haproxy-common", "ipset"]).unwrap();
    assert_eq!(
        lines(&lock),
        [
            "haproxy 2.6.10-2.ky11 (loongarch64) kylin Packages/haproxy-2.6.10-2.ky11.loongarch64.rpm",
            "haproxy-common 1-1 (noarch) kylin Packages/haproxy-common-1-1.noarch.rpm",
            "ipset 1:7.1-2 (loongarch64) kylin Packages/ipset-7.1-2.loongarch64.rpm",
            "file vendor.gpg  vendor.gpg",
        ]
    );
    let text = lock.to_text().unwrap();
    assert!(!text.contains("127.0.0.1") && !text.contains("http"), "a lock names no host");
    assert_eq!(Lock::parse(&text).unwrap(), lock);
    let mirrors = w.mirrors(&[]);
    w.session(&w.downloader, &mirrors).fetch(&lock).unwrap();
    let store = w.downloader.store();
    assert!(lock.inputs["kylin"].items.iter().all(|item| store.has(&item.sha256)));
    // With everything in the store, neither network nor address nor the keys' files are needed.
    let before = w.mirror.requests().len();
    std::fs::remove_file(w.dir.path().join("vendor.gpg")).unwrap();
    let (offline, nowhere) = (downloader(store, true), Mirrors::default());
    let session = w.session(&offline, &nowhere);
    session.fetch(&lock).unwrap();
    std::fs::remove_file(store.path(&lock.inputs["kylin"].items[0].sha256)).unwrap();
    let error = session.fetch(&lock).unwrap_err().to_string();
    assert!(error.contains("--offline: 1 file is not in the store:\n  haproxy 2.6.10-2.ky11 (loongarch64)"), "{error}");
    assert_eq!(w.mirror.requests().len(), before);
}

#[test]
fn a_version_can_be_named() {
    let w = World::new();
    for (wanted, locked) in [
        ("haproxy=2.6.6", "haproxy 2.6.6-1.ky11 (loongarch64)"),
        ("haproxy=2.6.10~rc1-9.ky11", "haproxy 2.6.10~rc1-9.ky11 (loongarch64)"),
        ("ipset=0:9-1", "ipset 9-1 (noarch)"),
    ] {
        assert!(lines(&w.lock(&[wanted]).unwrap())[0].starts_with(locked), "{wanted}");
    }
}

/// xz, zstd, and none at all; what the list is called does not matter.
#[test]
fn lists_are_compressed_in_several_ways() {
    let w = World::new();
    let list = metadata(&packages()).into_bytes();
    let zst = zstd::encode_all(&list[..], 1).unwrap();
    for (primary, name) in [(xz(&list), "a-primary.xml.xz"), (zst, "b-primary.xml.zst"), (list, "primary.xml")] {
        w.publish_index(&primary, name, &repomd(&primary, name));
        assert!(lines(&w.lock(&["ipset"]).unwrap())[0].starts_with("ipset 1:7.1-2 "), "{name}");
    }
}

#[test]
fn a_mirror_for_the_repository() {
    let w = World::new();
    let other = FakeMirror::start();
    let primary = gzip(metadata(&packages()).as_bytes());
    let index = repomd(&primary, "primary.xml.gz");
    other.put("copy/repodata/primary.xml.gz", primary.clone());
    other.put("copy/repodata/repomd.xml.asc", armored(&w.key, index.as_bytes()));
    other.put("copy/repodata/repomd.xml", index.as_str());
    let asked = w.mirror.requests().len();
    let mirrors = w.mirrors(&[format!("kylin={}", other.url("copy")), "http://127.0.0.1:1/debian".to_owned()]);
    let lock = w.lock_with(w.request(&["ipset"]), &mirrors).unwrap();
    assert_eq!((w.mirror.requests().len(), lock), (asked, w.lock(&["ipset"]).unwrap()), "the same lock");
    // And a folder of this machine.
    let folder = w.dir.path().join("copy/repodata");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("primary.xml.gz"), &primary).unwrap();
    std::fs::write(folder.join("repomd.xml"), &index).unwrap();
    let mirrors = w.mirrors(&[format!("kylin=file://{}", w.dir.path().join("copy").display())]);
    let unsigned = RpmRepositoryRequest { index_signed: false, ..w.request(&["ipset"]) };
    assert!(lines(&w.lock_with(unsigned, &mirrors).unwrap())[0].starts_with("ipset 1:7.1-2 "));
}

#[test]
fn all_packages_that_are_not_there_are_named() {
    let w = World::new();
    let (text, kind) = w.fails(&["nope", "haproxy=7", "ipset", "bash=4"]);
    assert_eq!(kind, ErrorKind::User);
    for part in [
        "input `kylin`: the repository http",
        "lacks packages for loongarch64",
        "\n  `nope`: there is no package of that name",
        "\n  `haproxy=7`: there is haproxy-2.6.10-2.ky11.loongarch64, haproxy-2.6.10-2.ky11.src, ",
        "haproxy-3.0-1.ky11.x86_64",
        "\n  `bash=4`: there is bash-5-1.loongarch64, bash-5-1.x86_64",
        "| write names as `dnf ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("`ipset`"), "{text}");
}

#[test]
fn what_packages_require_is_said() {
    let w = World::new();
    let urls = [w.mirror.url("repo")];
    let repository = Repository { downloader: &w.downloader, urls: &urls, name: "kylin", keys: None };
    let needs = |packages: &[&str]| {
        let wanted = packages.iter().map(ToString::to_string).collect();
        repository.resolve(&wanted, Architecture::Loong64).unwrap().1
    };
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    // What only a package for another machine has is not there; nor is the package haproxy-common required, which has no name for it.
    let nowhere = set(&["haproxy-common", "lua(abi) > 5"]);
    assert_eq!(needs(&["haproxy"]), Needs { packages: set(&["bash", "glibc"]), nowhere: nowhere.clone() });
    assert_eq!(needs(&["haproxy", "bash"]), Needs { packages: set(&["glibc"]), nowhere });
    assert_eq!(needs(&["ipset"]), Needs::default());
}

#[test]
fn an_index_that_nobody_trusted_has_signed() {
    let w = World::new();
    let (index, signature) = ("repo/repodata/repomd.xml", "repo/repodata/repomd.xml.asc");
    let primary = gzip(metadata(&packages()).as_bytes());
    let good = repomd(&primary, "primary.xml.gz");
    let stranger = armored(&key("stranger"), good.as_bytes());
    for (signature_text, problem) in [
        (stranger.clone(), "is not in it"),
        (armored(&w.key, b"other"), "BAD signature"),
        ("<html>".to_owned(), "its signature cannot be read"),
        (String::new(), "its signature cannot be read"),
    ] {
        w.mirror.put(signature, signature_text);
        let (text, kind) = w.fails(&["ipset"]);
        assert!(text.contains(problem) && text.contains("verifying http"), "{problem}: {text}");
        assert_eq!(kind, ErrorKind::Verification);
    }
    w.mirror.remove(signature);
    let (text, kind) = w.fails(&["ipset"]);
    assert!(text.contains("repomd.xml is not known to be signed") && text.contains("HTTP 404"), "{text}");
    assert!(
        text.contains("| if the repository signs its packages and not its index, write `signed = \"packages\"`"),
        "{text}"
    );
    assert_eq!(kind, ErrorKind::Environment);
    // One of several keys is enough, and who does not want the signature need not have it.
    w.mirror.put(signature, stranger);
    std::fs::write(w.dir.path().join("other.gpg"), keyring(&[&key("other")])).unwrap();
    let mut request = w.request(&["ipset"]);
    request.keys.insert("other.gpg".to_owned());
    let text = format!("{:#}", w.lock_with(request.clone(), &w.mirrors(&[])).unwrap_err());
    assert!(text.contains("no good signature by a key of other.gpg, vendor.gpg"), "{text}");
    w.mirror.put(signature, armored(&w.key, good.as_bytes()));
    assert_eq!(w.lock_with(request.clone(), &w.mirrors(&[])).unwrap().inputs["kylin"].items.len(), 3);
    w.mirror.remove(signature);
    request.index_signed = false;
    w.lock_with(request, &w.mirrors(&[])).unwrap();
    w.mirror.remove(index);
    let (text, kind) = w.fails(&["ipset"]);
    assert!(text.contains("downloading the index of the repository `kylin` from http"), "{text}");
    assert_eq!(kind, ErrorKind::Environment);
}

#[test]
fn indices_that_are_none() {
    let w = World::new();
    let primary = gzip(metadata(&packages()).as_bytes());
    let good = repomd(&primary, "primary.xml.gz");
    let size = format!("<size>{}</size>", primary.len());
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let place = "href=\"repodata/primary";
    for (text, problem) in [
        ("<html></html>".to_owned(), "names no list of packages"),
        ("{}".to_owned(), "names no list of packages"),
        (with("type=\"primary\"", "type=\"primary_db\""), "names no list of packages"),
        ("<repomd><data type=\"other\">".to_owned(), "it ends in an element"),
        ("<repomd></data>".to_owned(), "reading XML"),
        (with("type=\"sha256\"", "type=\"sha\""), "a checksum of kind `sha`, and only sha256 is taken"),
        (with(place, "href=\"../primary"), "has the place `../primary.xml.gz`, which is no plain path"),
        (with(place, "href=\"https://other.example/primary"), "which is no plain path"),
        (with(place, "xml:base=\"https://o.example\" href=\"repodata/primary"), "lies in another repository"),
        (with(&size, ""), "has no size"),
        (with(&size, "<size>99999999999</size>"), "more than any list of packages"),
        (with(&size, "<size>7</size>"), "bytes, expected 7"),
    ] {
        w.publish_index(&primary, "primary.xml.gz", &text);
        let (text, kind) = w.fails(&["ipset"]);
        assert!(text.contains(problem) && text.contains(" | "), "{problem}: {text}");
        assert_eq!(kind, ErrorKind::Verification, "{text}");
    }
}

#[test]
fn lists_that_are_none() {
    let w = World::new();
    let good = metadata(&packages());
    for (from, to, problem) in [
        (good.as_str(), "<html></html>", "it is no list of packages"),
        ("</metadata>", "", "it ends in an element"),
        ("<name>ipset</name>", "", "a package without a name"),
        ("<version epoch=\"0\" ver=\"9\" rel=\"1\"/>", "", "package ipset has no version"),
        ("epoch=\"1\"", "epoch=\"-1\"", "the epoch of package ipset is no number"),
        ("href=\"Packages/ipset-7.1", "href=\"../ipset-7.1", "package ipset: has the place `../ipset-7.1"),
        ("href=\"Packages/ipset-7.1", "href=\"a b/ipset-7.1", "which is no plain path"),
        ("<location href=\"Packages/ipset-7.1-2.loongarch64.rpm\"/>", "", "package ipset: has no place"),
    ] {
        assert!(good.contains(from), "{from}");
        w.publish(&good.replacen(from, to, 1));
        let (text, kind) = w.fails(&["ipset"]);
        assert!(text.contains(problem) && text.contains("reading the list of packages http"), "{problem}: {text}");
        assert_eq!(kind, ErrorKind::Verification, "{text}");
    }
    // Of a package that is not taken it does not matter.
    let sha1 = good.replace("type=\"sha256\"", "type=\"sha\"");
    let at = sha1.find("<name>ipset").unwrap();
    w.publish(&(sha1[..at].to_owned() + &good[good.find("<name>ipset").unwrap()..]));
    w.lock(&["ipset"]).unwrap();
    let (text, _) = w.fails(&["haproxy"]);
    assert!(text.contains("package haproxy: has a checksum of kind `sha`"), "{text}");
}

#[test]
fn a_package_that_is_another_or_gone() {
    let w = World::new();
    let lock = w.lock(&["ipset"]).unwrap();
    let (mirrors, path) = (w.mirrors(&[]), "repo/Packages/ipset-7.1-2.loongarch64.rpm");
    w.mirror.moods(path, &[Mood::Lie, Mood::Lie]);
    let error = w.session(&w.downloader, &mirrors).fetch(&lock).unwrap_err();
    assert_eq!(error::kind(&error), ErrorKind::Verification, "{error:#}");
    w.mirror.remove(path);
    let error = w.session(&w.downloader, &mirrors).fetch(&lock).unwrap_err();
    assert!(error.to_string().contains("downloading ipset 1:7.1-2 (loongarch64) from http"), "{error}");
    assert!(error::hint(&error).unwrap().contains("run `imgbuild lock --update kylin`"));
}

/// Runs a program of another package, in English.
fn run(command: &mut Command) -> Vec<u8> {
    let program = command.get_program().to_owned();
    let output = command.env("LC_ALL", "C.UTF-8").output();
    let output = output.unwrap_or_else(|error| panic!("{program:?} (tests/install-tools installs it): {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A package by rpmbuild that has one file.
fn rpmbuild(dir: &Path, name: &str, architecture: &str, (epoch, version, release): (u32, &str, &str)) {
    let spec = format!(
        "Name: {name}\nEpoch: {epoch}\nVersion: {version}\nRelease: {release}\nSummary: a & b\nLicense: GPL\n\
         Requires: {name}-libs >= 1\n%description\n<text>\n%install\nmkdir -p %{{buildroot}}/usr/bin\n\
         echo {version} > %{{buildroot}}/usr/bin/{name}\n%files\n/usr/bin/{name}\n"
    );
    let path = dir.join(format!("{name}.spec"));
    std::fs::write(&path, spec).unwrap();
    let top = dir.join("rpmbuild");
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--quiet", "--target", architecture, "--define", &format!("_topdir {}", top.display())]);
    build.args([
        "--define",
        "__os_install_post %{nil}",
        "--define",
        &format!("_rpmdir {}", dir.join("repo").display()),
    ]);
    run(build.arg(&path));
}

/// createrepo_c, rpmbuild, rpmsign and GnuPG make a repository, and what they say is understood.
#[test]
fn a_repository_that_createrepo_made() {
    let w = World::new();
    let dir = w.dir.path();
    for evr in [(0, "2.6.9", "1"), (0, "2.6.10", "1"), (0, "2.7~rc1", "1"), (0, "2.7~rc1", "1.fix^1")] {
        rpmbuild(dir, "haproxy", "loongarch64", evr);
    }
    rpmbuild(dir, "haproxy", "x86_64", (9, "9", "9"));
    rpmbuild(dir, "haproxy-libs", "noarch", (1, "1", "1"));
    rpmbuild(dir, "haproxy-libs", "noarch", (0, "2", "1"));
    let repo = dir.join("repo");
    // GnuPG's sockets want a short path.
    let home = tempfile::tempdir().unwrap();
    let gpg = || {
        let mut command = Command::new("gpg");
        command.env("GNUPGHOME", home.path()).args(["--batch", "--quiet"]);
        command
    };
    run(gpg().args(["--passphrase", "", "--quick-generate-key", "Vendor <vendor@example.org>", "rsa2048", "sign"]));
    std::fs::write(dir.join("vendor.gpg"), run(gpg().args(["--armor", "--export"]))).unwrap();
    let packages: Vec<_> = ["loongarch64", "noarch"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(repo.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(packages.len(), 6);
    let mut sign = Command::new("rpmsign");
    sign.env("GNUPGHOME", home.path()).args(["--define", "_gpg_name Vendor", "--define", "__gpg /usr/bin/gpg"]);
    run(sign.args(["--define", &format!("_gpg_path {}", home.path().display()), "--addsign"]).args(packages));
    for compression in ["gz", "xz"] {
        let mut create = Command::new("createrepo_c");
        run(create.args(["--quiet", "--general-compress-type", compression]).arg(&repo));
        let index = repo.join("repodata/repomd.xml");
        let _ = std::fs::remove_file(repo.join("repodata/repomd.xml.asc"));
        run(gpg().args(["--armor", "--detach-sign"]).arg(&index));
        publish_folder(&w.mirror, &repo, "repo");
        let lock = w.lock(&["haproxy", "haproxy-libs"]).unwrap();
        assert_eq!(
            lines(&lock),
            [
                "haproxy 2.7~rc1-1.fix^1 (loongarch64) kylin loongarch64/haproxy-2.7~rc1-1.fix^1.loongarch64.rpm",
                "haproxy-libs 1:1-1 (noarch) kylin noarch/haproxy-libs-1-1.noarch.rpm",
                "file vendor.gpg  vendor.gpg",
            ],
            "{compression}"
        );
        let mirrors = w.mirrors(&[]);
        w.session(&w.downloader, &mirrors).fetch(&lock).unwrap();
        // They are what they say they are, and signed by the key that was locked.
        let (store, items) = (w.downloader.store(), &lock.inputs["kylin"].items);
        let keys = Keyring::of_objects(store, [("vendor.gpg", &items[2].sha256)]).unwrap().unwrap();
        for item in &items[..2] {
            rpm::verify(store, &item.sha256, &keys).unwrap();
            let package = rpm::unpack(store, &item.sha256, Architecture::Loong64).unwrap();
            assert_eq!(item.path.rsplit('/').next().unwrap(), format!("{}.rpm", package.name));
        }
    }
    let urls = [w.mirror.url("repo")];
    let repository = Repository { downloader: &w.downloader, urls: &urls, name: "kylin", keys: None };
    let (_, needs) = repository.resolve(&["haproxy".to_owned()].into(), Architecture::Loong64).unwrap();
    assert_eq!(needs, Needs { packages: ["haproxy-libs".to_owned()].into(), nowhere: BTreeSet::new() });
}

/// Puts every file of a folder on the mirror.
fn publish_folder(mirror: &FakeMirror, folder: &Path, to: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let to = format!("{to}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            publish_folder(mirror, &path, &to);
        } else {
            mirror.put(&to, std::fs::read(&path).unwrap());
        }
    }
}

proptest! {
    /// A few bytes changed: an error or a list, never a panic.
    #[test]
    fn any_damage(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let list = metadata(&packages());
        let index = repomd(list.as_bytes(), "primary.xml");
        for text in [list, index] {
            let mut bytes = text.into_bytes();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let _ = index::repomd(&bytes);
            let _ = index::packages(&bytes[..], |package| package.file().map(drop));
        }
    }
}

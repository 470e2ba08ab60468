// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;
use crate::error::ErrorKind;
use crate::store::Store;
use crate::tree::{Entry, FileTree, Kind};

const JOBS: NonZeroUsize = NonZeroUsize::MIN;
/// Longer than the names that a tar header has room for, so that it comes in an extended one.
const LONG: &str = "pods/images/blobs/sha256/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Room {
    dir: tempfile::TempDir,
    store: Store,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle of the cluster `lab`; `change` is done to its files before they are summed up, `damage` afterwards.
    fn bundle(&self, arch: &str, nodes: &[&str], change: impl Fn(&mut Files), damage: impl Fn(&mut Files)) -> PathBuf {
        let listed: Vec<_> = nodes.iter().map(|name| format!("{{\"name\":\"{name}\",\"payload\":\"pods\"}}")).collect();
        let index = format!(
            "{{\"schema\":1,\"cluster\":\"lab\",\"cluster_id\":\"{}\",\"architecture\":\"{arch}\",\"nodes\":[{}]}}",
            "0".repeat(32),
            listed.join(",")
        );
        let mut files: Files = vec![
            ("install".into(), "#!/bin/sh\n".into(), 0o755),
            ("uninstall".into(), "#!/bin/sh\necho\n".into(), 0o755),
            (format!("{arch}/bundle.json"), index, 0o644),
            (format!("{arch}/firstboot"), format!("program for {arch}"), 0o755),
            (format!("{arch}/{LONG}"), format!("blob for {arch}"), 0o644),
        ];
        for name in nodes {
            files.push((format!("{arch}/seeds/{name}/user-data"), format!("secret of {name}"), 0o600));
        }
        change(&mut files);
        let mut sums = String::new();
        for (path, text, _) in &files {
            writeln!(sums, "{}  {path}", Digest::of(text.as_bytes())).unwrap();
        }
        writeln!(sums, "{}  {arch}/pods/bin/firstboot", Digest::of(format!("program for {arch}").as_bytes())).unwrap();
        files.push((format!("SHA256SUMS.{arch}"), sums, 0o600));
        damage(&mut files);
        let mut tree = FileTree::new();
        tree.insert("imgbuild-lab", Entry::dir(0o700)).unwrap();
        for (path, text, mode) in files {
            tree.insert(&format!("imgbuild-lab/{path}"), Entry::file(text.into_bytes(), mode)).unwrap();
        }
        let link = Kind::HardLink(format!("imgbuild-lab/{arch}/firstboot"));
        tree.insert(&format!("imgbuild-lab/{arch}/pods/bin/firstboot"), Entry::new(link, 0o755)).unwrap();
        let path = self.path(&format!("imgbuild-lab-{arch}-{}.tar.zst", nodes.join("-")));
        archive::write(&tree, &self.store, 1_700_000_000, JOBS, &path).unwrap();
        path
    }

    fn good(&self, arch: &str, nodes: &[&str]) -> PathBuf {
        self.bundle(arch, nodes, |_| {}, |_| {})
    }

    fn fails(&self, one: &Path, other: &Path) -> (String, ErrorKind) {
        let out = self.path("refused");
        let error = join([one, other], JOBS, &out).unwrap_err();
        assert!(!out.exists(), "nothing is left behind");
        (format!("{error:#} | {}", error::hint(&error).unwrap_or_default()), error::kind(&error))
    }
}

/// Path, text, mode.
type Files = Vec<(String, String, u16)>;

fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C.UTF-8").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What was signed of a half stays signed, and nothing else comes with it.
#[test]
fn signatures_of_halves_are_in_it() {
    let room = Room::new();
    let (signer, name) = (crate::signing::tests::signer(), "SHA256SUMS.amd64.minisig");
    let sign = |files: &mut Files| {
        let (path, text, _) = files.last().unwrap().clone();
        files.push((name.into(), crate::output::sums::sign(&signer, "lab", &path, &text), 0o600));
    };
    let amd64 = room.bundle("amd64", &["master-1"], |_| {}, sign);
    let joined = join([&amd64, &room.good("loong64", &["worker-1"])], JOBS, &room.path("out")).unwrap();
    let verified = crate::output::verify::verify(&joined, None).unwrap();
    assert_eq!((verified.problems, verified.signatures.len()), (vec![], 1));
    let problems = crate::output::verify::verify(&joined, Some(&signer.public_key())).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].starts_with("SHA256SUMS.loong64: is not signed by "), "{problems:?}");
    let stray = |files: &mut Files| files.push(("SHA256SUMS.other.minisig".into(), "x".into(), 0o600));
    let stray = room.bundle("loong64", &["worker-2"], |_| {}, stray);
    assert!(room.fails(&amd64, &stray).0.contains("SHA256SUMS.other.minisig is in no list"));
}

/// GNU tar unpacks it to the same folder as both halves one after the other, and sha256sum finds each half whole.
#[test]
fn both_halves_are_in_it() {
    let room = Room::new();
    let (amd64, loong64) = (room.good("amd64", &["master-1"]), room.good("loong64", &["worker-1", "worker-2"]));
    let joined = join([&loong64, &amd64], NonZeroUsize::new(3).unwrap(), &room.path("out")).unwrap();
    assert_eq!(joined, room.path("out/imgbuild-lab-hybrid.tar.zst"));
    assert_eq!(std::fs::metadata(&joined).unwrap().permissions().mode() & 0o777, 0o600);
    let unpack = |archives: &[&Path], to: &str| {
        let to = room.path(to);
        std::fs::create_dir(&to).unwrap();
        for archive in archives {
            run(Command::new("tar").args(["--zstd", "-xf"]).arg(archive).arg("-C").arg(&to));
        }
        to.join("imgbuild-lab")
    };
    let (one, two) = (unpack(&[&joined], "one"), unpack(&[&amd64, &loong64], "two"));
    run(Command::new("diff").args(["--recursive", "--no-dereference"]).args([&one, &two]));
    for sums in ["SHA256SUMS.amd64", "SHA256SUMS.loong64"] {
        let checked = run(Command::new("sha256sum").args(["--check", "--strict", sums]).current_dir(&one));
        assert_eq!(checked.lines().filter(|line| line.ends_with(": OK")).count(), checked.lines().count());
    }
    assert_eq!(std::fs::read_to_string(one.join("loong64/pods/bin/firstboot")).unwrap(), "program for loong64");
    assert_eq!(std::fs::read_to_string(one.join(format!("loong64/{LONG}"))).unwrap(), "blob for loong64");
    // Every entry is there once: nothing is written over when it is unpacked.
    let listed = run(Command::new("tar").args(["--zstd", "-tf"]).arg(&joined));
    assert_eq!(listed.lines().collect::<BTreeSet<_>>().len(), listed.lines().count(), "{listed}");
    assert_eq!(listed.lines().filter(|line| line.ends_with("/user-data")).count(), 3);
    let mode = run(Command::new("tar").args(["--zstd", "-tvf"]).arg(&joined));
    assert!(
        mode.lines().filter(|line| line.ends_with("user-data")).all(|line| line.starts_with("-rw-------")),
        "{mode}"
    );
}

#[test]
fn the_same_halves_give_the_same_bytes() {
    let room = Room::new();
    let (amd64, loong64) = (room.good("amd64", &["master-1"]), room.good("loong64", &["worker-1"]));
    let make = |pair: [&Path; 2], jobs, to: &str| {
        std::fs::read(join(pair, NonZeroUsize::new(jobs).unwrap(), &room.path(to)).unwrap()).unwrap()
    };
    let first = make([&amd64, &loong64], 1, "a");
    assert_eq!(first, make([&loong64, &amd64], 4, "b"));
    // One in its place is replaced.
    assert_eq!(first, make([&amd64, &loong64], 1, "a"));
    assert_eq!(std::fs::read_dir(room.path("a")).unwrap().count(), 1);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let room = Room::new();
    let amd64 = room.good("amd64", &["master-1"]);
    let in_index = |from: &'static str, to: &'static str| {
        move |files: &mut Files| {
            assert!(files[2].1.contains(from), "{from}");
            files[2].1 = files[2].1.replace(from, to);
        }
    };
    for (other, problems) in [
        (room.good("amd64", &["master-2"]), &["both are for amd64"][..]),
        (
            room.good("loong64", &["worker-1", "master-1"]),
            &["both have master-1: a node has one architecture", "| build each with"],
        ),
        (
            room.bundle("loong64", &["w1"], in_index("\"lab\"", "\"other\""), |_| {}),
            &["they are of the clusters `lab` and `other`"],
        ),
        (
            room.bundle("loong64", &["w2"], in_index("\"cluster_id\":\"00", "\"cluster_id\":\"01"), |_| {}),
            &["one name and different keys (ids 00", "the same `secrets/`"],
        ),
        (
            room.bundle("loong64", &["w3"], |files| files[0].1.push('#'), |_| {}),
            &["different versions of imgbuild", "| build both with the same imgbuild"],
        ),
        (
            room.bundle("amd64", &["master-1", "w4"], in_index("\"lab\"", "\"other\""), |_| {}),
            &["both are for amd64; they are of the clusters `lab` and `other`; both have master-1"],
        ),
    ] {
        let (text, kind) = room.fails(&amd64, &other);
        assert_eq!(kind, ErrorKind::User, "{text}");
        for problem in problems {
            assert!(text.contains(problem), "{problem}: {text}");
        }
    }
    let hybrid = join([&amd64, &room.good("loong64", &["w"])], JOBS, &room.path("out")).unwrap();
    let (text, kind) = room.fails(&hybrid, &amd64);
    assert!(text.contains("it is a bundle for both architectures already"), "{text}");
    assert_eq!(kind, ErrorKind::User);
}

#[test]
fn what_is_no_bundle_or_a_damaged_one_is_refused() {
    let room = Room::new();
    let good = room.good("amd64", &["master-1"]);
    let damaged = |name, damage: fn(&mut Files)| room.bundle("loong64", &[name], |_| {}, damage);
    let text = room.path("text");
    std::fs::write(&text, "no archive".repeat(200)).unwrap();
    let (cut, bytes) = (room.path("cut"), std::fs::read(room.good("loong64", &["w"])).unwrap());
    std::fs::write(&cut, &bytes[..bytes.len() - 9]).unwrap();
    for (other, problem) in [
        (damaged("a", |files| files[3].1.push('x')), "it is damaged: loong64/firstboot has other content"),
        (damaged("b", |files| drop(files.remove(4))), "is missing"),
        (damaged("c", |files| files.push(("loong64/more".into(), String::new(), 0o644))), "loong64/more is in no list"),
        (damaged("d", |files| files.last_mut().unwrap().1 = "zz  install\n".into()), "line 1 is no checksum"),
        (damaged("e", |files| drop(files.pop())), "it is no bundle: it has no list of checksums"),
        (damaged("f", |files| files.iter_mut().for_each(|file| file.1.clear())), "it is damaged"),
        (room.bundle("loong64", &["g"], |files| files[2].1 = "{}".into(), |_| {}), "understanding loong64/bundle.json"),
        (
            room.bundle("loong64", &["h"], |files| files.push(("etc/passwd".into(), "x".into(), 0o644)), |_| {}),
            "it is no bundle: it has etc/passwd",
        ),
        (room.bundle("loong64", &["i"], |files| drop(files.remove(1)), |_| {}), "it has no uninstall"),
        (text, "reading the bundle "),
        (cut, "reading the bundle "),
    ] {
        for (one, other) in [(&good, &other), (&other, &good)] {
            let (text, kind) = room.fails(one, other);
            assert!(text.contains(problem), "{problem}: {text}");
            assert_eq!(kind, ErrorKind::Verification, "{text}");
        }
    }
    let (text, kind) = room.fails(&room.path("nowhere"), &room.path("neither"));
    assert!(text.contains("/nowhere: it cannot be opened") && text.contains("/neither: it cannot be opened"), "{text}");
    assert_eq!(kind, ErrorKind::User);
}

#[test]
fn all_lists_together_are_bounded() {
    let mut found = Found::default();
    let list = |len| ArchiveKind::File { offset: 0, len };
    found.add("lab/SHA256SUMS.a", &list(TEXT_LIMIT), &mut io::empty()).unwrap();
    let error = found.add("lab/SHA256SUMS.b", &list(1), &mut io::empty()).unwrap_err();
    assert!(error.to_string().contains("with others more than any"), "{error}");
}

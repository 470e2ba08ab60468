// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files by address, from outside: what is locked, what is believed, and what is left when `imgbuild` is killed while
//! it downloads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use imgbuild_tests::cli::{Outcome, check_store, code, files_below, sha256};
use imgbuild_tests::https::{Https, certificates};
use imgbuild_tests::place::{Place, hex, noise};
use imgbuild_tests::random::Random;
use imgbuild_tests::tool::{run, tool};
use imgbuild_tests::web::{BLOCK, Web};

/// Name and content.
type File = (String, Vec<u8>);

/// Runs a command until it ends by itself, and kills it before that whenever the server has sent some more, but not
/// when it has sent more than `last`. Gives how often.
fn killed(place: &Place, arguments: &[&str], web: &Web, random: &mut Random, (files, last): (&[File], u64)) -> u64 {
    let mut kills = 0;
    loop {
        let moment = web.sent_in_all() + random.below(1_200_000) as u64;
        let mut child = place.command(arguments).stderr(Stdio::null()).spawn().unwrap();
        while web.sent_in_all() < moment || moment > last {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{arguments:?} after {kills} interruptions: {status}");
                return kills;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // SIGKILL; too late where it has just ended.
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(kills < 200, "no end of it");
        for path in files_below(&place.path("store/partial")) {
            let partial = fs::read(place.path("store/partial").join(&path)).unwrap();
            let is_begin = |(_, bytes): &File| bytes.starts_with(&partial);
            let is_note = path.extension().is_some_and(|extension| extension == "note");
            assert!(is_note || files.iter().any(is_begin), "{}: wrong bytes", path.display());
        }
    }
}

/// Some files, larger and smaller than a block.
fn files(random: &mut Random) -> Vec<File> {
    let sizes = [3_100_000, 1_000_003, 131_072, 40, 2_200_000];
    let name = |at: usize| if at == 0 { "root.tar".to_owned() } else { format!("file-{at}") };
    sizes.into_iter().enumerate().map(|(at, size)| (name(at), noise(random, size))).collect()
}

#[test]
fn a_fetch_that_is_killed_anywhere_gets_less_than_a_block_again_and_no_wrong_byte() {
    let mut random = Random::from_environment();
    let (web, files) = (Web::serve(), files(&mut random));
    let inputs: Vec<(&str, String)> = files
        .iter()
        .map(|(name, bytes)| {
            web.put(name, bytes.clone());
            (name.as_str(), format!("url = \"{}/{name}\"\nsha256 = \"{}\"", web.url, hex(bytes)))
        })
        .collect();
    let place = Place::new(&inputs);
    place.run(&["lock"]).succeeds();
    for (name, bytes) in &files {
        let line = format!("path = \"{}/{name}\", size = {}, sha256 = \"{}\"", web.url, bytes.len(), hex(bytes));
        assert!(place.lock().contains(&line), "{line} wanted in\n{}", place.lock());
    }
    // The machine that fetches is another one.
    fs::remove_dir_all(place.path("store")).unwrap();
    for (name, bytes) in &files {
        web.in_step(name, place.path("store/partial").join(hex(bytes)));
    }
    let kills = killed(&place, &["fetch"], &web, &mut random, (&files, u64::MAX));
    assert!(kills >= 3, "it was killed {kills} times");
    for (name, bytes) in &files {
        let again = web.sent(name) - bytes.len() as u64;
        println!("{name}: {again} bytes of {} came again, with {kills} interruptions", bytes.len());
        assert!(again <= kills * (BLOCK - 1), "{name}: {again} bytes came again");
        assert_eq!(sha256(&place.path("store/objects").join(&hex(bytes)[..2]).join(&hex(bytes)[2..])), hex(bytes));
    }
    assert_eq!(files_below(&place.path("store/partial")), [""; 0].map(PathBuf::from));
    check_store(&place.path("store"));
    place.run(&["store", "verify"]).succeeds();
    let sent = web.sent_in_all();
    place.run(&["fetch"]).succeeds();
    place.run(&["fetch", "--offline"]).succeeds();
    assert_eq!(web.sent_in_all(), sent, "everything is there");
}

#[test]
fn a_lock_that_is_killed_while_nobody_knows_the_sha256_goes_on_with_the_same_file() {
    let mut random = Random::from_environment();
    let (web, bytes) = (Web::serve(), noise(&mut random, 5_000_000));
    web.put("root.tar", bytes.clone());
    let url = format!("{}/root.tar", web.url);
    let place = Place::new(&[("root", format!("url = \"{url}\"\nchecksums = [\"sums\"]"))]);
    let mut openssl = tool("openssl");
    fs::write(place.path("root.tar"), &bytes).unwrap();
    let sums = run(openssl.args(["dgst", "-sha512", "root.tar"]).current_dir(place.path("")));
    fs::write(place.path("cluster/sums"), sums).unwrap();
    web.in_step("root.tar", place.path("store/partial").join(hex(url.as_bytes())));
    // Not after it has all: what it then was is known when the lock is written, and not before.
    let last = bytes.len() as u64 - 2 * BLOCK;
    let kills = killed(&place, &["lock"], &web, &mut random, (&[("root.tar".to_owned(), bytes.clone())], last));
    assert!(kills >= 2, "it was killed {kills} times");
    let again = web.sent("root.tar") - bytes.len() as u64;
    assert!(again <= kills * (BLOCK - 1), "{again} bytes came again, with {kills} interruptions");
    assert!(place.lock().contains(&format!("sha256 = \"{}\"", hex(&bytes))), "{}", place.lock());
    assert_eq!(files_below(&place.path("store/partial")), [""; 0].map(PathBuf::from));
    check_store(&place.path("store"));
}

#[test]
fn a_mirror_serves_what_the_lock_names_by_its_maker_and_what_changes_there_is_noticed() {
    let web = Web::serve();
    let (first, second) = (b"first root".as_slice(), b"another root".as_slice());
    let sums = |bytes: &[u8]| format!("{}  root.tar\r\n{}  other.tar\r\n", hex(bytes), hex(b"other"));
    web.put("dl/v1/root.tar", first);
    let upstream = "https://dl.example.invalid/v1/root.tar";
    let place = Place::new(&[("root", format!("url = \"{upstream}\"\nchecksums = [\"SHA256SUMS\"]"))]);
    fs::write(place.path("cluster/SHA256SUMS"), sums(first)).unwrap();
    let mirror = format!("dl.example.invalid={}/dl", web.url);
    let lock = |more: &[&str]| place.run(&[&["lock", "--mirror", &mirror][..], more].concat());
    lock(&[]).succeeds();
    assert!(place.lock().contains(upstream) && !place.lock().contains(&web.url), "{}", place.lock());
    lock(&["--check"]).succeeds();
    let other = place.run(&["store", "list"]).succeeds().stdout.clone();
    assert_eq!(other, format!("{}  {}\n", hex(first), first.len()));

    // Somebody publishes the same version anew.
    web.put("dl/v1/root.tar", second);
    lock(&["--update"]).succeeds();
    fs::write(place.path("cluster/SHA256SUMS"), sums(second)).unwrap();
    let outcome = lock(&["--check"]);
    outcome.fails(code::NEWER, &["imgbuild lock --update"]);
    assert!(outcome.stdout.contains("OTHER CONTENT UNDER THE SAME ADDRESS, 10 -> 12 bytes"), "{outcome}");
    // The list is right, the file is not.
    web.put("dl/v1/root.tar", b"root of evil".as_slice());
    fs::remove_dir_all(place.path("store")).unwrap();
    let said = format!("sha256 {} by SHA256SUMS, which is not so", hex(second));
    lock(&["--update"]).fails(code::VERIFICATION, &["input `root`", upstream, &said, &hex(b"root of evil")]);
    assert!(place.lock().contains(&hex(first)), "the lock stays as it was");
    check_store(&place.path("store"));
    // A list of other files.
    fs::write(place.path("cluster/SHA256SUMS"), format!("{}  root.tar.gz\n", hex(first))).unwrap();
    lock(&["--update"]).fails(code::USER, &["SHA256SUMS has no checksum of `root.tar` (it has `root.tar.gz`)"]);

    place.inputs(&[("root", format!("url = \"{}/dl/v1/root.tar\"", web.url))]);
    let text = fs::read_to_string(place.path("cluster/cluster.toml")).unwrap();
    let line = format!("cluster.toml:{}:7:", text.lines().position(|line| line.starts_with("url")).unwrap() + 1);
    place.run(&["validate"]).fails(code::USER, &[&line, "nothing says that what comes from http://127.0.0.1"]);
    place.inputs(&[("root", format!("url = \"{upstream}\""))]);
    place.run(&["validate"]).succeeds();
    lock(&[]).fails(code::USER, &["it comes by http (from http://127.0.0.1", "write its `sha256`"]);
}

#[test]
fn by_https_a_file_is_believed_if_the_server_is_and_the_lock_says_so() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), "IP:127.0.0.1");
    fs::write(folder.path().join("root.tar"), b"a root").unwrap();
    let https = Https::serve(folder.path());
    let place = Place::new(&[("root", format!("url = \"{}/root.tar\"", https.url()))]);
    place.run(&["lock"]).fails(code::ENVIRONMENT, &["certificate", "SSL_CERT_FILE"]);
    let with_authority =
        |file: &Path, arguments: &[&str]| Outcome::of(place.command(arguments).env("SSL_CERT_FILE", file));
    let authority = folder.path().join("ca.pem");
    let outcome = with_authority(&authority, &["lock"]);
    let warning = format!("warning: input `root`: only the connection vouches for {}/root.tar", https.url());
    assert!(outcome.succeeds().stderr.contains(&warning) && outcome.stderr.contains(&hex(b"a root")), "{outcome}");
    let outcome = with_authority(&authority, &["lock"]);
    assert!(!outcome.succeeds().stderr.contains("warning"), "what is locked is known: {outcome}");
    with_authority(&folder.path().join("none.pem"), &["lock", "--update"])
        .fails(code::ENVIRONMENT, &["none.pem, which cannot be read"]);
    // Without a need for https nobody asks for it.
    with_authority(&folder.path().join("none.pem"), &["fetch"]).succeeds();
    // What the store has lost comes by https, too.
    fs::remove_dir_all(place.path("store")).unwrap();
    with_authority(&authority, &["fetch"]).succeeds();
    place.inputs(&[("root", format!("url = \"{}/root.tar\"\nsha256 = \"{}\"", https.url(), hex(b"another root")))]);
    with_authority(&authority, &["lock"]).fails(code::VERIFICATION, &["by the cluster file, which is not so"]);
    let away = format!("url = \"{}/away\"", https.url());
    place.inputs(&[
        ("root", format!("url = \"{}/root.tar\"\nsha256 = \"{}\"", https.url(), hex(b"a root"))),
        ("away", away),
    ]);
    with_authority(&authority, &["lock"]).fails(code::ENVIRONMENT, &["leads to http://127.0.0.1:1/root.tar"]);
}

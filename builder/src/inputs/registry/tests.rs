// SPDX-License-Identifier: MIT OR Apache-2.0

//! Against a registry in this process. tests/tests/registry.rs has a real one.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use base64ct::{Base64, Encoding};
use profiles::node::Architecture;
use serde_json::json;

use super::fake::{Access, FakeRegistry, INDEX, MANIFEST, Mood, sha256};
use super::*;
use crate::error::{self, ErrorKind};
use crate::inputs::download::{Downloader, Options, Progress};
use crate::inputs::image_archive::of_objects;
use crate::inputs::request::{OciRequest, Request, Session, Update};
use crate::lock::{Diff, Lock, LockedItem};
use crate::store::{Digest, Store};

struct World {
    registry: FakeRegistry,
    dir: tempfile::TempDir,
    store: Store,
    /// Mirrors besides that of `lab.io`, which is `registry`.
    mirrors: Vec<String>,
}

/// A layer: long enough to be cut.
const LAYER: &[u8] = b"what stands for a layer";

impl World {
    fn new(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let registry = FakeRegistry::start(access);
        let mirrors = vec![format!("lab.io={}", registry.uri)];
        Self { registry, dir, store, mirrors }
    }

    fn log_in(&self, user: &str) {
        let host = self.registry.uri.trim_start_matches("http://");
        let auths = json!({ "auths": { host: { "auth": Base64::encode_string(user.as_bytes()) } } });
        fs::write(self.dir.path().join("auth.json"), auths.to_string()).unwrap();
    }

    fn downloader(&self, offline: bool) -> Downloader {
        let stall = Duration::from_millis(500);
        let options = Options { offline, backoff: Duration::from_millis(1), stall, attempts: 2, ..Options::default() };
        let mirrors = Mirrors::discover(&self.mirrors, self.dir.path(), |_| None).unwrap();
        let file = Some(self.dir.path().join("auth.json")).filter(|file| file.exists());
        let env =
            |name: &str| file.clone().filter(|_| name == "REGISTRY_AUTH_FILE").map(|file| file.display().to_string());
        let registries = Registries::new(&Proxies::default(), stall).discover(&mirrors, env);
        let downloader = Downloader::new(&self.store, &Proxies::default(), options, Progress::hidden()).unwrap();
        downloader.with_registries(registries)
    }

    fn lock_by(&self, downloader: &Downloader, images: &[&str]) -> anyhow::Result<Lock> {
        let images = images.iter().map(ToString::to_string).collect();
        let request = Request::Oci(OciRequest { architecture: Architecture::Loong64, images });
        let mirrors = Mirrors::default();
        let session = Session { downloader, mirrors: &mirrors, base: self.dir.path(), now: 0 };
        session.lock(&BTreeMap::from([("images".to_owned(), request)]), None, &Update::Stale)
    }

    fn lock(&self, images: &[&str]) -> anyhow::Result<Lock> {
        self.lock_by(&self.downloader(false), images)
    }

    /// Why nothing is locked, with what to do, and the exit code.
    fn fails(&self, images: &[&str]) -> (String, ErrorKind) {
        let error = self.lock(images).unwrap_err();
        let hint = error::hint(&error).unwrap_or_default();
        (format!("{error:#} | {hint}"), error::kind(&error))
    }

    fn fetch_by(&self, downloader: &Downloader, lock: &Lock) -> anyhow::Result<()> {
        let mirrors = Mirrors::default();
        Session { downloader, mirrors: &mirrors, base: self.dir.path(), now: 0 }.fetch(lock)
    }

    fn fetch(&self, lock: &Lock) -> anyhow::Result<()> {
        self.fetch_by(&self.downloader(false), lock)
    }
}

fn items(lock: &Lock) -> &[LockedItem] {
    &lock.inputs["images"].items
}

fn blobs(path: &str, digest: &str) -> String {
    format!("/v2/{path}/blobs/{digest}")
}

#[test]
fn an_image_of_several_machines_is_locked_and_fetched_for_ours() {
    let w = World::new(Access::Open);
    let r = &w.registry;
    let (ours, theirs) = (r.image("a/x", "l", "loong64", LAYER), r.image("a/x", "a", "amd64", b"theirs"));
    let attestation = r.manifest("a/x", "att", MANIFEST, &json!({ "schemaVersion": 2 }));
    let inner = r.index("a/x", "inner", &[("amd64", &theirs), ("loong64/v2", &theirs), ("loong64", &ours)]);
    let nested = json!({ "schemaVersion": 2, "manifests": [
        { "digest": attestation.digest, "size": attestation.size, "platform": { "architecture": "unknown", "os": "unknown" } },
        { "mediaType": INDEX, "digest": inner.digest, "size": inner.size },
    ] });
    let outer = r.manifest("a/x", "1", INDEX, &nested);
    let lock = w.lock(&["lab.io/a/x:1"]).unwrap();
    let mut paths: Vec<&str> = items(&lock).iter().map(|item| item.path.as_str()).collect();
    for wanted in [&outer, &inner, &ours] {
        let wanted = format!("a/x/manifests/{}", wanted.digest);
        assert!(paths.contains(&wanted.as_str()), "{paths:?}");
    }
    paths.retain(|path| path.contains("/blobs/"));
    assert_eq!(paths.len(), 2);
    let all = |value: fn(&LockedItem) -> &str| items(&lock).iter().map(value).collect::<BTreeSet<_>>();
    assert_eq!(all(|item| &item.name), ["lab.io/a/x:1"].into());
    assert_eq!(all(|item| &item.version), ["1"].into());
    assert_eq!(all(|item| &item.architecture), ["loong64"].into());
    assert_eq!(all(|item| &item.archive), ["lab.io"].into());
    // The same again, byte for byte, and the text reads back.
    let text = lock.to_text().unwrap();
    assert_eq!(w.lock(&["lab.io/a/x:1"]).unwrap().to_text().unwrap(), text);
    assert_eq!(Lock::parse(&text).unwrap(), lock);

    assert!(!w.store.has(&Digest::of(LAYER)), "locking needs no layer");
    r.requests();
    w.fetch(&lock).unwrap();
    assert_eq!(r.requests(), [blobs("a/x", &ours.layer)], "all but the layer was there");
    for item in items(&lock) {
        w.store.verify(&item.sha256).unwrap();
    }
    let (manifests, others): (Vec<_>, Vec<_>) = items(&lock).iter().partition(|item| item.path.contains("/manifests/"));
    let digests = |items: Vec<&LockedItem>| items.iter().map(|item| item.sha256).collect::<Vec<_>>();
    let image = of_objects(&w.store, Architecture::Loong64, &digests(manifests), &digests(others)).unwrap().unwrap();
    assert_eq!(format!("sha256:{}", image.manifest.digest), ours.digest);
    assert_eq!(image.blobs.len(), 3);

    // In another store, from the lock alone, manifests come by the same way as layers.
    let other = World {
        store: Store::open(&w.dir.path().join("other")).unwrap(),
        mirrors: w.mirrors.clone(),
        ..World::new(Access::Open)
    };
    r.requests();
    other.fetch(&lock).unwrap();
    assert_eq!(r.requests().len(), items(&lock).len());
    other.fetch_by(&other.downloader(true), &lock).unwrap();
    assert_eq!(r.requests().len(), 0);
}

#[test]
fn offline_asks_nobody_and_says_what_is_missing() {
    let w = World::new(Access::Open);
    w.registry.image("x", "1", "loong64", LAYER);
    let lock = w.lock(&["lab.io/x:1"]).unwrap();
    w.registry.requests();
    let offline = w.downloader(true);
    let error = w.lock_by(&offline, &["lab.io/x:1"]).unwrap_err();
    assert!(error.to_string().contains("--offline"), "{error}");
    let error = w.fetch_by(&offline, &lock).unwrap_err().to_string();
    let missing = format!("blob {} of image lab.io/x:1 ({} bytes, ", sha256(LAYER), LAYER.len());
    assert!(error.contains("--offline: 1 file is not in the store") && error.contains(&missing), "{error}");
    assert_eq!(w.registry.requests(), [""; 0]);
}

#[test]
fn tokens_are_asked_for_once_and_again_when_they_expire() {
    for (user, shown) in [(None, ""), (Some("lab:secret"), " as lab:secret")] {
        let w = World::new(Access::Bearer(user));
        let pushed = w.registry.image("x", "1", "loong64", LAYER);
        if let Some(user) = user {
            w.log_in(user);
        }
        let downloader = w.downloader(false);
        let lock = w.lock_by(&downloader, &["lab.io/x:1"]).unwrap();
        let config = items(&lock)
            .iter()
            .find(|item| ![&pushed.digest, &pushed.layer].contains(&&format!("sha256:{}", item.sha256)));
        let config = blobs("x", &format!("sha256:{}", config.unwrap().sha256));
        let token = format!("/token?service=fake%20registry&scope=repository%3Aany%3Apull{shown}");
        assert_eq!(
            w.registry.requests(),
            [
                "/v2/x/manifests/1".to_owned(),
                token.clone(),
                "/v2/x/manifests/1 as Bearer token-1".to_owned(),
                format!("{config} as Bearer token-1"),
            ]
        );
        w.registry.expire();
        let layer = blobs("x", &pushed.layer);
        // Cut in the middle, and expired when it goes on.
        w.registry.moods(&layer, &[Mood::Truncate(7)]);
        w.fetch_by(&downloader, &lock).unwrap();
        assert_eq!(
            w.registry.requests(),
            [
                format!("{layer} as Bearer token-1"),
                token,
                format!("{layer} as Bearer token-2"),
                format!("{layer} from 7 as Bearer token-2"),
            ]
        );
        w.store.verify(&Digest::of(LAYER)).unwrap();
    }
}

#[test]
fn many_downloads_ask_for_one_token() {
    let w = World::new(Access::Bearer(Some("lab:secret")));
    w.log_in("lab:secret");
    let r = &w.registry;
    let layers: Vec<serde_json::Value> = (0..12).map(|at| r.blob("x", format!("layer {at}").as_bytes())).collect();
    let ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let config = json!({ "architecture": "loong64", "os": "linux", "rootfs": { "diff_ids": ids } }).to_string();
    let mut config = r.blob("x", config.as_bytes());
    config["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    r.manifest("x", "1", "application/vnd.docker.distribution.manifest.v2+json", &manifest);
    let downloader = w.downloader(false);
    let lock = w.lock_by(&downloader, &["lab.io/x:1"]).unwrap();
    r.requests();
    r.expire();
    w.fetch_by(&downloader, &lock).unwrap();
    assert_eq!(r.requests().iter().filter(|line| line.starts_with("/token")).count(), 1);
}

#[test]
fn user_and_password_where_a_registry_wants_them() {
    let w = World::new(Access::Basic("lab:secret"));
    w.registry.image("x", "1", "loong64", LAYER);
    let (message, kind) = w.fails(&["lab.io/x:1"]);
    assert!(message.contains("it wants a user and a password, and none are known | "), "{message}");
    assert!(message.contains("docker login 127.0.0.1:"), "{message}");
    assert_eq!(kind, ErrorKind::Environment);
    w.log_in("lab:hunter2");
    let (message, kind) = w.fails(&["lab.io/x:1"]);
    assert!(message.contains("does not give x away: HTTP 401, authentication required"), "{message}");
    assert!(!message.contains("hunter2") && kind == ErrorKind::Environment, "{message}");
    w.log_in("lab:secret");
    w.registry.requests();
    let lock = w.lock(&["lab.io/x:1"]).unwrap();
    let asked = w.registry.requests();
    assert_eq!(asked[..2], ["/v2/x/manifests/1", "/v2/x/manifests/1 as lab:secret"]);
    w.fetch(&lock).unwrap();
    let tokens = World::new(Access::Bearer(Some("lab:secret")));
    tokens.log_in("lab:hunter2");
    let (message, _) = tokens.fails(&["lab.io/x:1"]);
    assert!(
        message.contains("refuses the credentials of ") && message.contains("auth.json: HTTP 401, who are you?"),
        "{message}"
    );
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn another_host_gets_no_credentials() {
    for access in [Access::Basic("lab:secret"), Access::Bearer(Some("lab:secret"))] {
        let w = World::new(access);
        w.log_in("lab:secret");
        let pushed = w.registry.image("x", "1", "loong64", LAYER);
        let lock = w.lock(&["lab.io/x:1"]).unwrap();
        let (layer, elsewhere) = (blobs("x", &pushed.layer), FakeRegistry::start(Access::Open));
        elsewhere.put("/signed?key=1", "", LAYER);
        let to = |path: &str| Mood::Redirect(format!("{}{path}", elsewhere.uri));
        w.registry.moods(&layer, &[Mood::Truncate(5), to("/signed?key=1")]);
        w.fetch(&lock).unwrap();
        assert_eq!(elsewhere.requests(), ["/signed?key=1 from 5"]);
        w.store.verify(&Digest::of(LAYER)).unwrap();
        // On the same host, they go along.
        let second = w.registry.image("x", "1", "loong64", b"a second layer");
        let lock = w.lock(&["lab.io/x:1"]).unwrap();
        w.registry.put("/moved", "", b"a second layer");
        w.registry.moods(&blobs("x", &second.layer), &[Mood::Redirect("/moved".to_owned())]);
        w.registry.requests();
        w.fetch(&lock).unwrap();
        assert!(w.registry.requests().last().unwrap().starts_with("/moved as "));

        // Who stands there cannot ask for them either.
        let thief = FakeRegistry::start(Access::Basic("lab:secret"));
        let third = w.registry.image("x", "1", "loong64", b"a third layer");
        let lock = w.lock(&["lab.io/x:1"]).unwrap();
        w.registry.moods(&blobs("x", &third.layer), &[Mood::Redirect(format!("{}/signed", thief.uri))]);
        let error = w.fetch(&lock).unwrap_err();
        assert!(error.to_string().contains("HTTP 401"), "{error}");
        assert_eq!(thief.requests(), ["/signed"]);
    }
}

#[test]
fn a_token_service_without_tls_gets_no_credentials() {
    let w = World::new(Access::Bearer(Some("lab:secret")));
    w.log_in("lab:secret");
    w.registry.names_token_service("http://token.example/token");
    let (message, kind) = w.fails(&["lab.io/x:1"]);
    assert!(message.contains("http://token.example is reached without TLS"), "{message}");
    assert_eq!((kind, w.registry.requests().len()), (ErrorKind::Environment, 1));
    w.registry.names_token_service("file:///etc/passwd");
    assert!(w.fails(&["lab.io/x:1"]).0.contains("names no token service"));
}

#[test]
fn a_moved_tag_is_seen_and_the_lock_still_has_what_it_names() {
    let w = World::new(Access::Open);
    let old = w.registry.image("x", "1", "loong64", LAYER);
    let pinned = format!("lab.io/x:1@{}", old.digest);
    let images = ["lab.io/x:1", pinned.as_str()];
    let before = w.lock(&images).unwrap();
    w.registry.image("x", "1", "loong64", b"another layer");
    let after = w.lock(&images).unwrap();
    let diff = Diff::of(&before, &after);
    assert!(diff.changes_files());
    let text = diff.to_string();
    assert!(text.contains("~ image lab.io/x:1 (loong64): the tag has moved, "), "{text}");
    assert!(!text.contains('@'), "what has a digest stays: {text}");
    w.fetch(&before).unwrap();
    w.store.verify(&Digest::of(LAYER)).unwrap();
    // Names are those that nodes ask for.
    assert_eq!(items(&before).iter().filter(|item| item.name == pinned).count(), 3);
}

#[test]
fn every_image_that_cannot_be_had_is_named() {
    let w = World::new(Access::Open);
    let r = &w.registry;
    let theirs = r.image("theirs", "1", "amd64", b"theirs");
    r.index("index", "1", &[("amd64", &theirs), ("arm64/v8", &theirs), ("unknown", &theirs)]);
    let lie = r.image("lie", "l", "amd64", b"lie");
    r.index("lie", "1", &[("loong64", &lie)]);
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let blob = r.blob("helm", b"{}");
    let mut config = blob.clone();
    config["mediaType"] = helm.into();
    r.manifest(
        "helm",
        "1",
        MANIFEST,
        &json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [blob] }),
    );
    let mut foreign = r.image_manifest("foreign", "loong64", LAYER);
    foreign["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    r.manifest("foreign", "1", MANIFEST, &foreign);
    let mut strange = r.image_manifest("strange", "loong64", LAYER);
    strange["layers"][0]["mediaType"] = "application/x-floppy".into();
    r.manifest("strange", "1", MANIFEST, &strange);
    let mut both = r.image_manifest("both", "loong64", LAYER);
    both["manifests"] = json!([{ "digest": theirs.digest, "size": theirs.size }]);
    r.manifest("both", "1", MANIFEST, &both);
    r.manifest("old", "1", "application/vnd.docker.distribution.manifest.v1+prettyjws", &json!({ "schemaVersion": 1 }));
    r.put("/v2/html/manifests/1", "text/html", b"<html>");
    let mut more = r.image_manifest("more", "loong64", LAYER);
    let layer = more["layers"][0].clone();
    more["layers"] = json!([layer, layer]);
    r.manifest("more", "1", MANIFEST, &more);
    r.image("good", "1", "loong64", LAYER);
    let names =
        ["index", "theirs", "lie", "helm", "foreign", "strange", "both", "old", "html", "more", "good", "absent"];
    let names: Vec<String> = names.iter().map(|name| format!("lab.io/{name}:1")).collect();
    let (message, kind) = w.fails(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for wanted in [
        "image lab.io/index:1: there is none for linux/loong64; its index has linux/amd64, linux/arm64/v8",
        "image lab.io/theirs:1 is for linux/amd64, not for linux/loong64",
        "image lab.io/lie:1: its index says linux/loong64, its configuration linux/amd64",
        "an artifact of the type application/vnd.cncf.helm.config.v1+json",
        "lies outside of the registry",
        "is of the unknown type application/x-floppy",
        "image lab.io/both:1: it claims to be an index and an image at once",
        "image lab.io/old:1: it is of Docker's schema 1",
        "image lab.io/html:1: what comes is no manifest",
        "image lab.io/more:1 has 2 layers, and 1 by its configuration",
        "image lab.io/absent:1: the registry does not have it: HTTP 404, manifest unknown",
    ] {
        assert!(message.contains(wanted), "no `{wanted}` in {message}");
    }
    assert!(!message.contains("lab.io/good"), "{message}");
    assert_eq!(kind, ErrorKind::Verification);
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    let w = World::new(Access::Open);
    let pushed = w.registry.image("x", "1", "loong64", LAYER);
    w.registry.moods("/v2/x/manifests/1", &[Mood::Digest]);
    let (message, kind) = w.fails(&["lab.io/x:1"]);
    assert!(message.contains("the registry calls it sha256:") && kind == ErrorKind::Verification, "{message}");
    let pinned = format!("lab.io/x@{}", pushed.digest);
    w.registry.moods(&format!("/v2/x/manifests/{}", pushed.digest), &[Mood::Lie]);
    let (message, kind) = w.fails(&[&pinned]);
    assert!(message.contains("what comes is sha256:") && kind == ErrorKind::Verification, "{message}");
    let lock = w.lock(&[&pinned]).unwrap();
    w.registry.moods(&blobs("x", &pushed.layer), &[Mood::Lie, Mood::Lie]);
    let error = w.fetch(&lock).unwrap_err();
    assert!(error.to_string().contains("sha256 is") && error::kind(&error) == ErrorKind::Verification, "{error}");
    assert!(!w.store.has(&Digest::of(LAYER)));
    // An index that lies about a size.
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        { "digest": pushed.digest, "size": pushed.size + 1, "platform": { "architecture": "loong64", "os": "linux" } }
    ] });
    w.registry.manifest("x", "2", INDEX, &index);
    assert!(w.fails(&["lab.io/x:2"]).0.contains("another size by its index"));
    let mut digest = pushed.digest;
    for _ in 0..5 {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [{ "digest": digest }] });
        digest = w.registry.manifest("x", "deep", INDEX, &index).digest;
    }
    assert!(w.fails(&["lab.io/x:deep"]).0.contains("nested too deeply"));
    w.registry.put("/v2/x/manifests/huge", MANIFEST, &vec![b' '; (4 << 20) + 1]);
    assert!(w.fails(&["lab.io/x:huge"]).0.contains("it is bigger than 4194304 bytes"));
}

#[test]
fn a_mirror_may_have_a_path_and_the_next_one_helps() {
    let mut w = World::new(Access::Open);
    let uri = w.registry.uri.clone();
    w.mirrors = vec![format!("docker.io={uri}/v2/hub/"), format!("docker.io={uri}"), format!("lab:5000={uri}/proxy")];
    w.registry.image("proxy/a/x", "1", "loong64", LAYER);
    w.registry.image("library/busybox", "1", "loong64", b"busybox");
    let lock = w.lock(&["docker.io/library/busybox:1", "lab:5000/a/x:1"]).unwrap();
    let asked = w.registry.requests();
    for wanted in
        ["/v2/hub/library/busybox/manifests/1", "/v2/library/busybox/manifests/1", "/v2/proxy/a/x/manifests/1"]
    {
        assert!(asked.contains(&wanted.to_owned()), "{asked:?}");
    }
    w.fetch(&lock).unwrap();
    let archives: BTreeSet<&str> = items(&lock).iter().map(|item| item.archive.as_str()).collect();
    assert_eq!(archives, ["docker.io", "lab:5000"].into(), "a lock names no mirror");
    assert!(items(&lock).iter().any(|item| item.path.starts_with("a/x/manifests/")));
    for bad in ["file:///srv", "https://user:hunter2@lab"] {
        w.mirrors = vec![format!("lab:5000={bad}")];
        let (message, kind) = w.fails(&["lab:5000/a/x:1"]);
        assert!(
            message.contains("is no plain http:// or https:// address") && !message.contains("hunter2"),
            "{message}"
        );
        assert_eq!(kind, ErrorKind::User);
    }
}

#[test]
fn a_registry_that_is_not_there_is_said_once() {
    let mut w = World::new(Access::Open);
    w.mirrors = vec!["lab.io=http://127.0.0.1:1".to_owned()];
    let (message, kind) = w.fails(&["lab.io/a:1", "lab.io/b:1", "lab.io/c:1"]);
    assert_eq!(message.matches("the registry 127.0.0.1:1 cannot be asked: ").count(), 1, "{message}");
    assert!(message.contains("--mirror lab.io=URL") && kind == ErrorKind::Environment, "{message}");
    let w = World::new(Access::Open);
    w.registry.image("x", "1", "loong64", LAYER);
    w.registry.moods("/v2/x/manifests/1", &[Mood::Status(429)]);
    w.lock(&["lab.io/x:1"]).unwrap();
    w.registry.moods("/v2/x/manifests/1", &[Mood::Status(429), Mood::Status(429)]);
    let (message, _) = w.fails(&["lab.io/x:1"]);
    assert!(message.contains("HTTP 429, slow down; who logs in may have more"), "{message}");
}

#[test]
fn authorities_that_cannot_be_read_are_named() {
    let w = World::new(Access::Open);
    let file = w.dir.path().join("ca.pem");
    let lock = |text: Option<&str>| {
        text.into_iter().for_each(|text| fs::write(&file, text).unwrap());
        let mut registries = Registries::new(&Proxies::default(), Duration::from_millis(500));
        registries.trust("lab.example", &file);
        let downloader = w.downloader(false).with_registries(registries);
        format!("{:#}", w.lock_by(&downloader, &["lab.example/x:1"]).unwrap_err())
    };
    assert!(lock(None).contains("reading the certificates"), "{}", lock(None));
    assert!(lock(Some("nothing")).contains("ca.pem has no certificate in PEM form"));
}

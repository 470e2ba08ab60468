// SPDX-License-Identifier: MIT OR Apache-2.0

//! Downloads through a proxy that misbehaves. After every run of `imgbuild` there is either what was wanted, to the
//! last byte, or an error that names what could not be had and says why; and the store has nothing that is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use imgbuild_tests::cli::{Outcome, check_store, code, files_below};
use imgbuild_tests::https::{Https, certificates};
use imgbuild_tests::place::{Place, hex, noise};
use imgbuild_tests::proxy::{Conduct, Fault, Proxy};
use imgbuild_tests::random::Random;
use imgbuild_tests::registry::{Registry, cluster_file, layout};
use imgbuild_tests::web::Web;

/// Hosts that the proxy alone knows: RFC 6761 has no others in `.invalid`.
const FILES: &str = "files.example.invalid";
const REGISTRY: &str = "registry.example.invalid";
/// How often each command meets the proxy at its worst. A download that is tried again waits for half a second first.
const RUNS: usize = 3;

/// What holds after any run: the store is whole, and if not everything went well, it is said of one of `names` what is
/// wrong with it. Gives whether everything went well.
fn judge(outcome: &Outcome, store: &Path, names: &[String]) -> bool {
    check_store(store);
    if outcome.code == Some(code::OK) {
        return true;
    }
    // Never the user's fault, who has named what is there.
    match outcome.code {
        Some(code::VERIFICATION) => outcome.fails_with_several(code::VERIFICATION, &[]),
        _ => outcome.fails_with_several(code::ENVIRONMENT, &[]),
    }
    let says_why = |line: &str, name: &String| {
        line.split_once(name.as_str()).is_some_and(|(_, why)| why.contains(": ") || why.contains(" is not "))
    };
    let is_named = outcome.stderr.lines().any(|line| names.iter().any(|name| says_why(line, name)));
    assert!(is_named, "none of {names:?} is named with what is wrong\n{outcome}");
    false
}

/// The names of all objects of a store.
fn objects(store: &Path) -> BTreeSet<String> {
    let name = |path: &PathBuf| -> String { path.to_str().unwrap().replace('/', "") };
    files_below(&store.join("objects")).iter().map(name).collect()
}

/// Every SHA-256 in a lock.
fn locked(lock: &str) -> BTreeSet<String> {
    let lock: toml::Table = lock.parse().unwrap();
    let inputs = lock["input"].as_table().unwrap().values();
    let items = inputs.flat_map(|input| input["items"].as_array().unwrap());
    items.map(|item| item["sha256"].as_str().unwrap().to_owned()).collect()
}

/// A cluster whose lock is to be made, and whose inputs are to be fetched, through the proxy.
struct Trial<'a> {
    place: &'a Place,
    proxy: &'a Proxy,
    /// Runs `imgbuild` with these arguments.
    run: &'a dyn Fn(&[&str]) -> Outcome,
    /// What errors may be about.
    names: &'a [String],
}

impl Trial<'_> {
    fn judge(&self, outcome: &Outcome) -> bool {
        judge(outcome, &self.place.path("store"), self.names)
    }

    /// Locks and fetches while the proxy misbehaves, and once more when it behaves again.
    fn survives(&self) {
        let (store, path) = (self.place.path("store"), self.place.path("cluster/imgbuild.lock"));
        self.proxy.conduct(Conduct::Good);
        (self.run)(&["lock"]).succeeds();
        let right = self.place.lock();
        let wanted = locked(&right);

        self.proxy.conduct(Conduct::Bad);
        for _ in 0..RUNS {
            fs::remove_file(&path).unwrap();
            // What came in the run before may stay, and be continued.
            if objects(&store).is_superset(&wanted) {
                fs::remove_dir_all(&store).unwrap();
            }
            match self.judge(&(self.run)(&["lock"])) {
                true => assert_eq!(self.place.lock(), right),
                false => assert!(!path.exists(), "a lock of something that could not be had: {}", self.place.lock()),
            }
            fs::write(&path, &right).unwrap();
        }

        fs::remove_dir_all(&store).unwrap();
        for _ in 0..RUNS {
            let done = self.judge(&(self.run)(&["fetch"]));
            let there = objects(&store);
            assert!(there.is_subset(&wanted), "{there:?} in the store, and {wanted:?} is locked");
            if done {
                assert_eq!(there, wanted);
                fs::remove_dir_all(&store).unwrap();
            }
        }
        self.proxy.conduct(Conduct::Good);
        (self.run)(&["fetch"]).succeeds();
        assert_eq!(objects(&store), wanted);
        assert_eq!(files_below(&store.join("partial")), [""; 0].map(PathBuf::from));
        (self.run)(&["store", "verify"]).succeeds();
        assert_eq!(self.place.lock(), right);
    }
}

/// Some files by address, behind the proxy.
struct Addresses {
    place: Place,
    proxy: Proxy,
    urls: Vec<String>,
}

impl Addresses {
    fn new(random: &mut Random) -> Self {
        let web = Web::serve();
        let proxy = Proxy::start(&[(FILES, web.address())], random);
        let sizes = [("root.tar", 700_000), ("large", 300_001), ("block", 131_072), ("small", 40)];
        let mut inputs = Vec::new();
        for (name, size) in sizes {
            let bytes = noise(random, size);
            inputs.push((name, format!("url = \"http://{FILES}/{name}\"\nsha256 = \"{}\"", hex(&bytes))));
            web.put(name, bytes);
        }
        let urls = sizes.iter().map(|(name, _)| format!("http://{FILES}/{name}")).collect();
        Self { place: Place::new(&inputs), proxy, urls }
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        let command = self.proxy.by_environment(&self.place.path("apt"));
        Outcome::of(&mut self.place.with(command, arguments))
    }
}

#[test]
fn files_by_address_are_right_or_named() {
    let setup = Addresses::new(&mut Random::from_environment());
    let run = |arguments: &[&str]| setup.run(arguments);
    Trial { place: &setup.place, proxy: &setup.proxy, run: &run, names: &setup.urls }.survives();
}

#[test]
fn what_a_proxy_does_is_said_in_words() {
    let setup = Addresses::new(&mut Random::from_environment());
    setup.run(&["lock"]).succeeds();
    let store = setup.place.path("store");
    for (fault, exit, said) in [
        (Fault::Flip, code::VERIFICATION, "sha256 is "),
        (Fault::Status(200), code::VERIFICATION, " bytes, expected "),
        (Fault::Status(407), code::VERIFICATION, "the mirror answers HTTP 407"),
        (Fault::Status(403), code::ENVIRONMENT, "the mirror does not have it (HTTP 403)"),
        (Fault::Status(502), code::ENVIRONMENT, ": HTTP 502"),
        (Fault::Garbage, code::ENVIRONMENT, "garbled response"),
    ] {
        fs::remove_dir_all(&store).unwrap();
        setup.proxy.conduct(Conduct::Always(fault));
        let outcome = setup.run(&["fetch"]);
        outcome.fails(exit, &[said]);
        assert!(!judge(&outcome, &store, &setup.urls), "{fault:?}");
        assert_eq!(objects(&store), BTreeSet::new(), "{fault:?}");
    }
    // A pause is none of these.
    setup.proxy.conduct(Conduct::Always(Fault::Pause));
    setup.run(&["fetch"]).succeeds();
    assert_eq!(objects(&store), locked(&setup.place.lock()));
}

/// What comes by https is locked because it came by https: a proxy that looks into the tunnel must not be believed.
#[test]
fn what_comes_through_a_tunnel_is_right_or_named() {
    let mut random = Random::from_environment();
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), &format!("DNS:{FILES}"));
    let names = ["root.tar", "large"];
    for (name, size) in names.iter().zip([150_000, 90_001]) {
        let path = folder.path().join(name);
        fs::write(&path, noise(&mut random, size)).unwrap();
        // Long enough ago for its date to tell versions apart.
        let old = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    }
    let https = Https::serve(folder.path());
    let host = format!("{FILES}:443");
    let proxy = Proxy::start(&[(&host, &https.address)], &mut random);
    let urls: Vec<String> = names.iter().map(|name| format!("https://{FILES}/{name}")).collect();
    let inputs: Vec<(&str, String)> =
        names.iter().zip(&urls).map(|(name, url)| (*name, format!("url = \"{url}\""))).collect();
    let place = Place::new(&inputs);
    let authority = folder.path().join("ca.pem");
    let run = |arguments: &[&str]| {
        let mut command = place.with(proxy.by_environment(&place.path("apt")), arguments);
        Outcome::of(command.env("SSL_CERT_FILE", &authority))
    };
    Trial { place: &place, proxy: &proxy, run: &run, names: &urls }.survives();
    for name in names {
        let bytes = fs::read(folder.path().join(name)).unwrap();
        assert!(locked(&place.lock()).contains(&hex(&bytes)), "{name}");
    }
}

/// An image of a registry without TLS, by digest: whoever names it by tag alone believes whatever comes.
#[test]
fn images_of_a_registry_are_right_or_named() {
    let mut random = Random::from_environment();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("registry");
    let private = Registry::private(&folder);
    // A layer of more than one block.
    layout(&dir.path().join("layout"), &["amd64", "loong64"], &hex(&noise(&mut random, 100)).repeat(5));
    private.push(&dir.path().join("layout"), "lab/pause:3.2");
    let index = hex(private.raw("lab/pause:3.2").as_bytes());
    drop(private);
    let registry = Registry::open(&folder);
    let proxy = Proxy::start(&[(REGISTRY, &registry.host)], &mut random);

    let place = Place::new(&[]);
    fs::create_dir(place.path("cluster/inputs")).unwrap();
    fs::write(place.path("cluster/inputs/root.tar"), "a root filesystem, which nobody reads here").unwrap();
    let image = format!("{REGISTRY}/lab/pause:3.2@sha256:{index}");
    let text = cluster_file("loong64", std::slice::from_ref(&image), "");
    fs::write(place.path("cluster/cluster.toml"), text).unwrap();
    let mirror = format!("--mirror={REGISTRY}=http://{REGISTRY}");
    let run = |arguments: &[&str]| {
        let mut command = place.with(proxy.by_apt(&place.path("apt")), arguments);
        for name in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"] {
            command.env_remove(name);
        }
        Outcome::of(command.arg(&mirror).env("HOME", place.path("")))
    };
    let names = [REGISTRY.to_owned()];
    Trial { place: &place, proxy: &proxy, run: &run, names: &names }.survives();
    let lock = place.lock();
    assert!(lock.contains(&index) && !lock.contains(&proxy.url), "{lock}");
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Images of a real registry: Debian's docker-registry, to which skopeo pushed them. What skopeo finds there is what is
//! locked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use imgbuild_tests::build::binary;
use imgbuild_tests::cli::{Outcome, check_store, code, sha256};
use imgbuild_tests::registry::{PASSWORD, Registry, USER, cluster_file, layout};
use serde_json::{Value, json};

const ARCHITECTURES: [&str; 2] = ["amd64", "loong64"];

/// A folder with a registry, and a cluster that takes an image from it.
struct Room {
    dir: tempfile::TempDir,
    registry: Registry,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::private(&dir.path().join("registry"));
        let room = Self { dir, registry };
        fs::create_dir_all(room.path("cluster/inputs")).unwrap();
        fs::create_dir_all(room.path("home")).unwrap();
        fs::write(room.path("cluster/inputs/root.tar"), "a root filesystem, which nobody reads here").unwrap();
        fs::copy(room.registry.authority(), room.path("cluster/inputs/ca.pem")).unwrap();
        room.push("first");
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Pushes an image with `text` in it to the one tag.
    fn push(&self, text: &str) {
        let folder = self.path(&format!("layout-{text}"));
        layout(&folder, &ARCHITECTURES, text);
        self.registry.push(&folder, "lab/pause:3.2");
    }

    fn image(&self) -> String {
        format!("{}/lab/pause:3.2", self.registry.host)
    }

    /// The cluster takes these images.
    fn wants(&self, architecture: &str, images: &[String], more: &str) {
        let text = cluster_file(architecture, images, more);
        fs::write(self.path("cluster/cluster.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--cluster").arg(self.path("cluster")).arg("--store").arg(self.path("store"));
        // Nothing of whoever runs the test.
        for name in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "IMGBUILD_MIRROR"] {
            command.env_remove(name);
        }
        command.env("HOME", self.path("home")).current_dir(self.dir.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments))
    }

    /// Writes docker's configuration.
    fn docker(&self, config: &Value) {
        fs::create_dir_all(self.path("home/.docker")).unwrap();
        fs::write(self.path("home/.docker/config.json"), config.to_string()).unwrap();
    }

    fn log_in(&self, password: &str) {
        self.docker(&json!({ "auths": { &self.registry.host: { "username": USER, "password": password } } }));
    }

    /// The locked blobs of the image, by path.
    fn locked(&self) -> Vec<(String, String)> {
        let lock: toml::Table = fs::read_to_string(self.path("cluster/imgbuild.lock")).unwrap().parse().unwrap();
        let text = |item: &toml::Value, key: &str| item[key].as_str().unwrap().to_owned();
        let items = lock["input"]["images"]["items"].as_array().unwrap();
        items.iter().map(|item| (text(item, "path"), text(item, "sha256"))).collect()
    }

    /// The digests that skopeo finds for the image: of its index, of the manifest for an architecture, and of what that
    /// lists.
    fn found(&self, architecture: &str) -> Vec<String> {
        let raw = self.registry.raw("lab/pause:3.2");
        let file = self.path("raw");
        fs::write(&file, &raw).unwrap();
        let index: Value = serde_json::from_str(&raw).unwrap();
        let entries = index["manifests"].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["platform"]["architecture"] == architecture).unwrap();
        let own = entry["digest"].as_str().unwrap();
        let manifest: Value = serde_json::from_str(&self.registry.raw(&format!("lab/pause@{own}"))).unwrap();
        let text = |digest: &Value| digest.as_str().unwrap().to_owned();
        vec![
            format!("lab/pause/manifests/sha256:{}", sha256(&file)),
            format!("lab/pause/manifests/{own}"),
            format!("lab/pause/blobs/{}", text(&manifest["config"]["digest"])),
            format!("lab/pause/blobs/{}", text(&manifest["layers"][0]["digest"])),
        ]
    }
}

#[test]
fn images_are_locked_fetched_and_seen_to_move() {
    let room = Room::new();
    let ca = "ca = \"inputs/ca.pem\"";
    room.wants("loong64", &[room.image()], "");
    room.run(&["lock"]).fails(code::ENVIRONMENT, &[&room.registry.host, "cannot be asked", "name that in `ca`"]);
    room.wants("loong64", &[room.image()], ca);
    let login = format!("docker login {}", room.registry.host);
    room.run(&["lock"]).fails(code::ENVIRONMENT, &["wants a user and a password", &login]);
    room.log_in("a wrong horse");
    let outcome = room.run(&["lock"]);
    outcome.fails(code::ENVIRONMENT, &["does not give lab/pause away: HTTP 401"]);
    assert!(!outcome.stderr.contains("wrong horse"), "{outcome}");
    assert!(!room.path("cluster/imgbuild.lock").exists());

    room.log_in(PASSWORD);
    room.run(&["lock"]).succeeds();
    let mut found = room.found("loong64");
    found.sort();
    let locked = room.locked();
    assert_eq!(locked.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), found);
    assert!(locked.iter().all(|(path, hash)| path.ends_with(hash)));
    let text = fs::read_to_string(room.path("cluster/imgbuild.lock")).unwrap();
    assert!(
        !text.contains(PASSWORD) && text.contains(&format!("name = \"{}\", version = \"3.2\"", room.image())),
        "{text}"
    );
    room.run(&["fetch"]).succeeds();
    check_store(&room.path("store"));
    for (_, hash) in &locked {
        assert!(room.path("store/objects").join(&hash[..2]).join(&hash[2..]).exists(), "{hash}");
    }
    room.run(&["fetch", "--offline"]).succeeds();
    room.run(&["lock", "--check"]).succeeds();

    room.push("second");
    let outcome = room.run(&["lock", "--check"]);
    outcome.fails(code::NEWER, &["older than what"]);
    assert!(outcome.stdout.contains(&format!("~ image {} (loong64): the tag has moved, ", room.image())), "{outcome}");
    assert_eq!(fs::read_to_string(room.path("cluster/imgbuild.lock")).unwrap(), text);
    room.run(&["lock", "--update", "images"]).succeeds();
    assert_ne!(room.locked(), locked);
    // What was locked is still there by its digest.
    let old = locked.iter().find(|(path, _)| *path == found[2]).unwrap();
    room.wants("loong64", &[format!("{}@sha256:{}", room.image(), old.1)], ca);
    room.run(&["lock"]).succeeds();
    room.run(&["lock", "--check"]).succeeds();
}

#[test]
fn what_is_not_there_is_named_together() {
    let room = Room::new();
    room.log_in(PASSWORD);
    layout(&room.path("other"), &["amd64"], "for one machine");
    room.registry.push(&room.path("other"), "lab/other:1");
    let image = |name: &str| format!("{}/{name}", room.registry.host);
    room.wants("loong64", &[image("lab/other:1"), image("lab/pause:9"), room.image()], "ca = \"inputs/ca.pem\"");
    let outcome = room.run(&["lock"]);
    let absent = format!("image {}: the registry does not have it: HTTP 404, manifest unknown", image("lab/pause:9"));
    let other = format!("image {}: there is none for linux/loong64; its index has linux/amd64", image("lab/other:1"));
    outcome.fails(code::USER, &[&absent, &other]);
    assert!(!room.path("cluster/imgbuild.lock").exists());
}

#[test]
fn a_helper_knows_the_password_and_a_mirror_needs_none() {
    let room = Room::new();
    room.wants("amd64", &[room.image()], "ca = \"inputs/ca.pem\"");
    let bin = room.path("bin");
    fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-imgbuild-test");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = 'get {}' ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        room.registry.host
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    room.docker(&json!({ "credsStore": "imgbuild-test" }));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Outcome::of(room.command(&["lock"]).env("PATH", &path)).succeeds();
    let mut found = room.found("amd64");
    found.sort();
    assert_eq!(room.locked().into_iter().map(|(path, _)| path).collect::<Vec<_>>(), found);

    // The same images elsewhere: without TLS, and for everybody. The lock stays as it is.
    let mirror = Registry::open(&room.path("registry"));
    let option = format!("--mirror={}=http://{}", room.registry.host, mirror.host);
    fs::remove_dir_all(room.path("home/.docker")).unwrap();
    fs::remove_file(room.path("cluster/inputs/ca.pem")).unwrap();
    room.wants("amd64", &[room.image()], "");
    room.run(&["fetch", &option]).succeeds();
    check_store(&room.path("store"));
    room.run(&["lock", "--check", &option]).succeeds();
    // Nobody is asked without TLS unless that is said.
    let hidden = Room { dir: tempfile::tempdir().unwrap(), registry: mirror };
    fs::create_dir_all(hidden.path("cluster/inputs")).unwrap();
    fs::write(hidden.path("cluster/inputs/root.tar"), "x").unwrap();
    hidden.wants("amd64", &[hidden.image()], "");
    let said = format!("--mirror {0}=http://{0}", hidden.registry.host);
    hidden.run(&["lock"]).fails(code::ENVIRONMENT, &["cannot be asked", &said]);
}

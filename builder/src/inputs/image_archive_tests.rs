// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;
use crate::inputs::deb::fixtures::{gzip, tar};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::of(bytes))
}

/// Blobs of a layout, by path.
#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    fn add(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        self.0.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        digest
    }

    /// An image of one layer, compressed in the layout.
    fn image(&mut self, architecture: &str, file: &str) -> String {
        let layer = tar(&[("bin/x", file)]);
        let config = json!({ "architecture": architecture, "os": "linux", "rootfs": { "diff_ids": [digest(&layer)] } });
        let config = self.add(config.to_string().into_bytes());
        let layer = self.add(gzip(&layer));
        let manifest = json!({ "schemaVersion": 2, "config": { "digest": config }, "layers": [{ "digest": layer }] });
        self.add(manifest.to_string().into_bytes())
    }

    fn finish(mut self, index: Value) -> Vec<(String, Vec<u8>)> {
        self.0.push(("index.json".into(), index.to_string().into_bytes()));
        self.0.push(("oci-layout".into(), b"{}".to_vec()));
        self.0
    }
}

fn read(files: &[(String, Vec<u8>)]) -> Result<Vec<Image>> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let object = store.put_bytes(&gzip(&tar(files))).unwrap();
    let archive = archive::unpack_system(&store, &object)?;
    assert!(holds_images(&archive) || files.is_empty());
    let images = Images::of(&store, &archive, Architecture::Loong64)?.read()?;
    for image in &images {
        let layers = image.layers(&store)?;
        assert_eq!((layers.len(), layers[0].entries[0].path.as_str()), (1, "bin/x"));
        for (digest, content) in &image.blobs {
            assert_eq!(Digest::of(&content.read(&store).unwrap()), *digest);
        }
    }
    Ok(images)
}

#[test]
fn a_layout_gives_the_image_of_our_machine_under_all_its_names() {
    let mut blobs = Blobs::default();
    let (ours, theirs) = (blobs.image("loong64", "ours"), blobs.image("amd64", "theirs"));
    let platform = |architecture: &str| json!({ "architecture": architecture, "os": "linux" });
    let both = json!({ "manifests": [
        { "digest": theirs, "platform": platform("amd64") },
        { "digest": ours, "platform": platform("loong64") },
        { "digest": digest(b"not there"), "platform": platform("unknown") },
    ] });
    let both = blobs.add(both.to_string().into_bytes());
    let name = |name: &str| json!({ "digest": both, "annotations": { "io.containerd.image.name": name } });
    let tag = json!({ "digest": ours, "annotations": { "org.opencontainers.image.ref.name": "calico/cni:v1" } });
    let images = read(&blobs.finish(json!({ "manifests": [name("a.io/x:1"), name("b.io/x:1"), tag] }))).unwrap();
    assert_eq!(images[0].names, ["a.io/x:1", "b.io/x:1"]);
    assert_eq!(images[1].names, ["docker.io/calico/cni:v1"]);
    assert_eq!(format!("sha256:{}", images[0].manifest.digest), ours);
    assert_eq!(images[0].blobs.len(), 3);
}

#[test]
fn images_for_other_machines_are_named_together() {
    let mut blobs = Blobs::default();
    let images = [blobs.image("amd64", "one"), blobs.image("loongarch64", "two"), blobs.image("loong64", "three")];
    let entries: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(n, digest)| json!({ "digest": digest, "annotations": { "io.containerd.image.name": format!("a.io/x:{n}") } }))
        .collect();
    let error = read(&blobs.finish(json!({ "manifests": entries }))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image a.io/x:0 is for linux/amd64, not for linux/loong64\n  \
         image a.io/x:1 is for linux/loongarch64, not for linux/loong64"
    );
}

#[test]
fn dockers_own_form_gets_a_manifest() {
    for compress in [false, true] {
        let layer = tar(&[("bin/x", "x")]);
        let config = json!({ "architecture": "loong64", "os": "linux", "rootfs": { "diff_ids": [digest(&layer)] } });
        let config = config.to_string().into_bytes();
        let manifest =
            json!([{ "Config": "c.json", "RepoTags": ["pause:3.10", "a.io/pause:3.10"], "Layers": ["l/layer.tar"] }]);
        let files = [
            ("c.json".to_owned(), config.clone()),
            ("l/layer.tar".to_owned(), if compress { gzip(&layer) } else { layer.clone() }),
            ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
        ];
        let images = read(&files).unwrap();
        assert_eq!(images[0].names, ["docker.io/library/pause:3.10", "a.io/pause:3.10"]);
        assert!(
            images[0].blobs.contains_key(&Digest::of(&layer)) && images[0].blobs.contains_key(&Digest::of(&config))
        );
    }
}

#[test]
fn damage_is_found() {
    let mut blobs = Blobs::default();
    let image = blobs.image("loong64", "x");
    let files = blobs.finish(json!({ "manifests": [{ "digest": image }] }));
    read(&files).unwrap();
    for at in 0..3 {
        let mut bad = files.clone();
        bad[at].1.push(b' ');
        let error = format!("{:#}", read(&bad).unwrap_err());
        assert!(error.contains("is damaged"), "{error}");
        bad.remove(at);
        let error = format!("{:#}", read(&bad).unwrap_err());
        assert!(error.contains("is not in the archive"), "{error}");
    }
    let error = read(&[("x".to_owned(), vec![]), ("manifest.json".to_owned(), b"{}".to_vec())]).unwrap_err();
    assert!(format!("{error:#}").contains("manifest.json is not what it should be"), "{error:#}");
}

#[test]
fn an_index_that_lists_itself_ends() {
    // No digest can be that of a text that has it: so a chain, deeper than any honest one.
    let mut blobs = Blobs::default();
    let mut digest = blobs.image("loong64", "x");
    for _ in 0..10 {
        digest = blobs.add(json!({ "manifests": [{ "digest": digest }] }).to_string().into_bytes());
    }
    let error = read(&blobs.finish(json!({ "manifests": [{ "digest": digest }] }))).unwrap_err();
    assert!(format!("{error:#}").contains("nested too deeply"), "{error:#}");
}

#[test]
fn indices_that_list_the_next_one_many_times_end() {
    let mut blobs = Blobs::default();
    let mut digest = blobs.image("amd64", "x");
    for _ in 0..DEEPEST {
        let entries = vec![json!({ "digest": digest }); 1000];
        digest = blobs.add(json!({ "manifests": entries }).to_string().into_bytes());
    }
    let error = read(&blobs.finish(json!({ "manifests": [{ "digest": digest }] }))).unwrap_err();
    assert!(format!("{error:#}").contains("is for linux/amd64, not for linux/loong64"), "{error:#}");
}

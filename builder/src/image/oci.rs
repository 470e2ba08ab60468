// SPDX-License-Identifier: MIT OR Apache-2.0

//! OCI image layouts: container images in a directory (<https://github.com/opencontainers/image-spec>, image-layout.md).
//!
//! Owns the layout, and the manifests and configurations of images that we make; [`layer`] owns their layers. The same
//! images give the same bytes. Layers stay uncompressed: the squashfs around them compresses already, and a node that
//! imports them need not decompress twice. Knows nothing of Kubernetes, and not where images of others come from.

pub mod layer;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
pub use profiles::reference;
use serde::Serialize;

pub use self::layer::Layer;
use crate::store::Digest;
use crate::tree::{Content, Entry, FileTree, Kind};

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index, which lists manifests for several platforms.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An image that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Full references it is known by, at least one.
    pub names: Vec<String>,
    /// What its programs run on.
    pub architecture: Architecture,
    /// Its layers, the lowest first, at least one.
    pub layers: Vec<Layer>,
    /// What runs in its containers.
    pub process: Process,
}

/// What runs in a container unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Program and leading arguments, which a container's own arguments follow.
    pub entrypoint: Vec<String>,
    /// Arguments, which a container's own arguments replace.
    pub arguments: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Directory to start in; empty for the root.
    pub working_directory: String,
    /// User, or user and group, by name or number (`65535:65535`); empty for root.
    pub user: String,
}

/// A manifest of a layout, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    #[serde(serialize_with = "with_algorithm")]
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
}

/// A layout in the making.
#[derive(Debug)]
pub struct Layout {
    created: String,
    blobs: BTreeMap<Digest, Content>,
    manifests: Vec<IndexEntry>,
    names: BTreeSet<String>,
}

impl Layout {
    /// A layout without images, whose images were created at `epoch` (seconds since 1970).
    ///
    /// # Errors
    /// Never for a time of this century.
    pub fn new(epoch: u32) -> Result<Self> {
        let created = jiff::Timestamp::from_second(epoch.into()).context("writing the build's time as a date")?;
        Ok(Self { created: created.to_string(), blobs: BTreeMap::new(), manifests: Vec::new(), names: BTreeSet::new() })
    }

    /// Adds an image that we make, and gives its manifest.
    ///
    /// # Errors
    /// If it has no layer, no entrypoint or no name, a name is not a full reference or taken, or an environment
    /// variable cannot be one.
    pub fn add(&mut self, image: &Image) -> Result<Descriptor> {
        let name = image.names.first().context("an image needs a name")?;
        let adding = || format!("adding image {name}");
        if image.layers.is_empty() || image.process.entrypoint.is_empty() {
            bail!("image {name} needs a layer and an entrypoint");
        }
        let config = config(image, &self.created).with_context(adding)?;
        let (config, config_bytes) = json(CONFIG, &config).with_context(adding)?;
        let config_digest = config.digest;
        let layers = image.layers.iter().map(Layer::descriptor).collect();
        let manifest = Manifest { schema_version: 2, media_type: MANIFEST, config, layers };
        let (manifest, manifest_bytes) = json(MANIFEST, &manifest).with_context(adding)?;
        self.blobs.insert(config_digest, config_bytes);
        self.blobs.insert(manifest.digest, manifest_bytes);
        let blobs = image.layers.iter().map(|layer| (layer.digest, layer.content()));
        self.add_existing(&image.names, image.architecture, manifest.clone(), blobs).with_context(adding)?;
        Ok(manifest)
    }

    /// Adds an image of others: its manifest, for one platform, and all blobs it needs, the manifest itself included.
    ///
    /// # Errors
    /// If a name is not a full reference or taken, or the manifest is not among the blobs.
    pub fn add_existing(
        &mut self,
        names: &[String],
        architecture: Architecture,
        manifest: Descriptor,
        blobs: impl IntoIterator<Item = (Digest, Content)>,
    ) -> Result<()> {
        for name in names {
            reference::check(name)?;
            if !self.names.insert(name.clone()) {
                bail!("two images are named {name}");
            }
        }
        self.blobs.extend(blobs);
        if self.blobs.get(&manifest.digest).is_none_or(|content| content.len() != manifest.size) {
            bail!("manifest {} is not among the blobs", manifest.digest);
        }
        let platform = Platform { architecture, os: "linux" };
        self.manifests.extend(names.iter().map(|name| IndexEntry {
            descriptor: manifest.clone(),
            platform,
            annotations: Annotations { reference: name.clone(), containerd: name.clone() },
        }));
        Ok(())
    }

    /// The finished layout, to be mounted wherever it is wanted. Images are listed by name.
    ///
    /// # Errors
    /// Only if JSON cannot be written.
    pub fn finish(mut self) -> Result<FileTree> {
        self.manifests.sort_by(|a, b| a.annotations.reference.cmp(&b.annotations.reference));
        let index = Index { schema_version: 2, media_type: INDEX, manifests: self.manifests };
        let index = serde_json::to_vec(&index).context("writing an image index")?;
        let mut tree = FileTree::new();
        // The version is of the layout's form, unchanged since image-spec 1.0.
        tree.insert("oci-layout", Entry::file(*br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644))?;
        tree.insert("index.json", Entry::file(index, 0o644))?;
        tree.insert("blobs/sha256", Entry::dir(0o755))?;
        for (digest, content) in self.blobs {
            tree.insert(&format!("blobs/sha256/{digest}"), Entry::new(Kind::File(content), 0o644))?;
        }
        Ok(tree)
    }
}

/// The configuration of an image.
fn config<'a>(image: &'a Image, created: &'a str) -> Result<Config<'a>> {
    let process = &image.process;
    if let Some(name) = process.environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        bail!("`{name}` cannot be the name of an environment variable");
    }
    Ok(Config {
        created,
        architecture: image.architecture,
        os: "linux",
        config: ProcessConfig {
            user: &process.user,
            env: process.environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            entrypoint: &process.entrypoint,
            cmd: &process.arguments,
            working_dir: &process.working_directory,
        },
        rootfs: RootFs {
            kind: "layers",
            // A layer that is not compressed is the same blob in a manifest and below a configuration.
            diff_ids: image.layers.iter().map(|layer| Prefixed(layer.digest)).collect(),
        },
        history: image.layers.iter().map(|layer| History { created, created_by: &layer.created_by }).collect(),
    })
}

fn json(media_type: &str, value: &impl Serialize) -> Result<(Descriptor, Content)> {
    let bytes = serde_json::to_vec(value).with_context(|| format!("writing {media_type}"))?;
    let descriptor =
        Descriptor { media_type: media_type.to_owned(), digest: Digest::of(&bytes), size: bytes.len() as u64 };
    Ok((descriptor, Content::Bytes(bytes.into())))
}

// The structures below are those of image-spec's image-index.md, manifest.md and config.md.

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<IndexEntry>,
}

#[derive(Debug, Serialize)]
struct IndexEntry {
    #[serde(flatten)]
    descriptor: Descriptor,
    platform: Platform,
    annotations: Annotations,
}

/// Our architectures are spelt as in Go, which is what the specification wants.
#[derive(Debug, Clone, Copy, Serialize)]
struct Platform {
    architecture: Architecture,
    os: &'static str,
}

#[derive(Debug, Serialize)]
struct Annotations {
    /// image-spec's annotations.md.
    #[serde(rename = "org.opencontainers.image.ref.name")]
    reference: String,
    /// What containerd names an imported image (its images/annotations.go); it wins over the one above.
    #[serde(rename = "io.containerd.image.name")]
    containerd: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Serialize)]
struct Config<'a> {
    created: &'a str,
    architecture: Architecture,
    os: &'static str,
    config: ProcessConfig<'a>,
    rootfs: RootFs,
    history: Vec<History<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessConfig<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    entrypoint: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    cmd: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    working_dir: &'a str,
}

#[derive(Debug, Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<Prefixed>,
}

#[derive(Debug, Serialize)]
struct History<'a> {
    created: &'a str,
    created_by: &'a str,
}

#[derive(Debug, Serialize)]
struct Prefixed(#[serde(serialize_with = "with_algorithm")] Digest);

fn with_algorithm<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("sha256:{digest}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::store::Store;

    const EPOCH: u32 = 1_610_543_941;

    fn image(store: &Store, name: &str) -> Image {
        let mut tree = FileTree::new();
        tree.insert("pause", Entry::file(*b"\x7fELF", 0o755)).unwrap();
        Image {
            names: vec![name.to_owned()],
            architecture: Architecture::Amd64,
            layers: vec![Layer::write(store, &tree, EPOCH, "imgbuild: pause").unwrap()],
            process: Process {
                entrypoint: vec!["/pause".to_owned()],
                environment: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
                user: "65535:65535".to_owned(),
                ..Process::default()
            },
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn parse(store: &Store, tree: &FileTree, path: &str) -> Value {
        let Kind::File(content) = &tree.get(path).unwrap().kind else { panic!("{path} is no file") };
        serde_json::from_slice(&content.read(store).unwrap()).unwrap()
    }

    fn blob(digest: &Value) -> String {
        format!("blobs/{}", digest.as_str().unwrap().replace(':', "/"))
    }

    #[test]
    fn the_layout_leads_from_the_index_to_the_layer() {
        let (_dir, store) = store();
        let mut layout = Layout::new(EPOCH).unwrap();
        let image = image(&store, "k8s.gcr.io/pause:3.2");
        let manifest = layout.add(&image).unwrap();
        let tree = layout.finish().unwrap();

        assert_eq!(parse(&store, &tree, "oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }));
        let index = parse(&store, &tree, "index.json");
        assert_eq!(
            index["manifests"],
            json!([{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{}", manifest.digest),
                "size": manifest.size,
                "platform": { "architecture": "amd64", "os": "linux" },
                "annotations": {
                    "org.opencontainers.image.ref.name": "k8s.gcr.io/pause:3.2",
                    "io.containerd.image.name": "k8s.gcr.io/pause:3.2",
                },
            }])
        );
        let manifest = parse(&store, &tree, &blob(&index["manifests"][0]["digest"]));
        let layer = &manifest["layers"][0];
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar");
        assert_eq!(tree.get(&blob(&layer["digest"])).unwrap().kind, Kind::File(image.layers[0].content()));
        let config = parse(&store, &tree, &blob(&manifest["config"]["digest"]));
        assert_eq!(
            config,
            json!({
                "created": "2021-01-13T13:19:01Z",
                "architecture": "amd64",
                "os": "linux",
                "config": { "User": "65535:65535", "Env": ["PATH=/bin"], "Entrypoint": ["/pause"] },
                "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
                "history": [{ "created": "2021-01-13T13:19:01Z", "created_by": "imgbuild: pause" }],
            })
        );
    }

    #[test]
    fn images_share_layers_and_their_order_does_not_matter() {
        let (_dir, store) = store();
        let images = ["k8s.gcr.io/pause:3.2", "registry.k8s.io/pause:3.2"].map(|name| image(&store, name));
        let [forth, back] = [[0, 1], [1, 0]].map(|order| {
            let mut layout = Layout::new(EPOCH).unwrap();
            for at in order {
                layout.add(&images[at]).unwrap();
            }
            layout.finish().unwrap()
        });
        assert_eq!(forth, back);
        // One manifest, one configuration, one layer.
        assert_eq!(forth.iter().filter(|(path, _)| path.starts_with("blobs/sha256/")).count(), 3);
        assert_eq!(parse(&store, &forth, "index.json")["manifests"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn refuses_what_no_runtime_could_use() {
        let (_dir, store) = store();
        let good = image(&store, "k8s.gcr.io/pause:3.2");
        let mut layout = Layout::new(EPOCH).unwrap();
        layout.add(&good).unwrap();
        let bad_variable = BTreeMap::from([("A=B".to_owned(), String::new())]);
        for (image, problem) in [
            (good.clone(), "two images are named k8s.gcr.io/pause:3.2"),
            (Image { names: vec![], ..good.clone() }, "needs a name"),
            (Image { names: vec!["pause:3.2".into()], ..good.clone() }, "pause:3.2"),
            (Image { layers: vec![], ..good.clone() }, "needs a layer"),
            (Image { process: Process::default(), ..good.clone() }, "an entrypoint"),
            (
                Image { process: Process { environment: bad_variable, ..good.process.clone() }, ..good.clone() },
                "`A=B` cannot be the name",
            ),
        ] {
            let error = format!("{:#}", layout.add(&image).unwrap_err());
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn an_existing_image_brings_its_manifest() {
        let mut layout = Layout::new(EPOCH).unwrap();
        let content = Content::Bytes((*b"{}").into());
        let manifest = Descriptor { media_type: MANIFEST.to_owned(), digest: Digest::of(b"{}"), size: 2 };
        let names = ["docker.io/calico/cni:v3.29.1".to_owned()];
        let error = layout.add_existing(&names, Architecture::Amd64, manifest.clone(), []).unwrap_err();
        assert!(error.to_string().contains("is not among the blobs"), "{error}");

        let mut layout = Layout::new(EPOCH).unwrap();
        layout.add_existing(&names, Architecture::Amd64, manifest.clone(), [(manifest.digest, content)]).unwrap();
        assert!(layout.finish().unwrap().get(&format!("blobs/sha256/{}", manifest.digest)).is_some());
    }
}

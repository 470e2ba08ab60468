// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian's docker-registry on loopback, with TLS by an authority of the test's own, a user and a password; and small
//! images that skopeo pushes to it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::archive::one_node;
use crate::cli::sha256;
use crate::tool::{command, run, tool, unpacked};

/// The user that the registry knows.
pub const USER: &str = "lab";
/// Its password.
pub const PASSWORD: &str = "correct horse";
/// The same as htpasswd has it, made by crypt(5): bcrypt, the one form that the registry knows, at its lowest cost.
const HTPASSWD: &str = "lab:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";

/// What openssl writes certificates by.
const OPENSSL: &str = "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = imgbuild tests\n\
    [ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
    [server]\nbasicConstraints = critical, CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";

/// How long the registry takes at most until it answers, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running registry; it ends with this value.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    /// Host and port.
    pub host: String,
    /// Whether it wants TLS, a user and a password.
    is_private: bool,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// A registry that keeps everything in `folder`, and gives it to [`USER`] alone, by TLS.
    pub fn private(folder: &Path) -> Self {
        fs::create_dir_all(folder.join("certificates")).unwrap();
        fs::write(folder.join("openssl.cnf"), OPENSSL).unwrap();
        fs::write(folder.join("htpasswd"), HTPASSWD).unwrap();
        let make = |name: &str, subject: &str, extensions: &str| {
            let mut openssl = tool("openssl");
            openssl.current_dir(folder).args(["req", "-x509", "-config", "openssl.cnf", "-nodes", "-days", "2"]);
            openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", subject]);
            openssl.args([
                "-extensions",
                extensions,
                "-keyout",
                &format!("{name}.key"),
                "-out",
                &format!("{name}.pem"),
            ]);
            openssl
        };
        run(&mut make("ca", "/CN=imgbuild tests", "ca"));
        run(make("server", "/CN=registry", "server").args(["-CA", "ca.pem", "-CAkey", "ca.key"]));
        // Where skopeo looks for authorities.
        fs::copy(folder.join("ca.pem"), folder.join("certificates/ca.crt")).unwrap();
        let in_folder = |name: &str| folder.join(name).display().to_string();
        let more = json!({
            "auth": { "htpasswd": { "realm": "lab", "path": in_folder("htpasswd") } },
            "tls": { "certificate": in_folder("server.pem"), "key": in_folder("server.key") },
        });
        Self::start(folder, "private", &more)
    }

    /// A registry that has what is kept in `folder`, perhaps by another one, and gives it to everybody, without TLS.
    pub fn open(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        Self::start(folder, "open", &json!({}))
    }

    fn start(folder: &Path, name: &str, more: &Value) -> Self {
        let program = unpacked("docker-registry/usr/bin/docker-registry", "docker-registry");
        let begin = Instant::now();
        loop {
            // Free now, and in all likelihood still a moment later.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let host = format!("127.0.0.1:{port}");
            // JSON is YAML.
            let mut config = json!({
                "version": 0.1,
                "log": { "level": "error" },
                "storage": { "filesystem": { "rootdirectory": folder.join("storage") } },
                "http": { "addr": host },
            });
            if let Some(auth) = more.get("auth") {
                config["auth"] = auth.clone();
            }
            if let Some(tls) = more.get("tls") {
                config["http"]["tls"] = tls.clone();
            }
            let file = folder.join(format!("{name}.yml"));
            fs::write(&file, config.to_string()).unwrap();
            let log = fs::File::create(folder.join(format!("{name}.log"))).unwrap();
            let mut registry = command(&program);
            registry.arg("serve").arg(&file).stdout(Stdio::null()).stderr(log);
            let mut child = registry.spawn().unwrap_or_else(|error| panic!("running {}: {error}", program.display()));
            while child.try_wait().unwrap().is_none() && begin.elapsed() < PATIENCE {
                if TcpStream::connect(&host).is_ok() {
                    let is_private = more.get("tls").is_some();
                    return Self { folder: folder.to_owned(), host, is_private, child };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
            let said = fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
            assert!(begin.elapsed() < PATIENCE && said.contains("address already in use"), "docker-registry: {said}");
        }
    }

    /// The authority that signs for it.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// skopeo with what it must know to get in; its options for a copy's destination begin with `dest-`.
    fn skopeo(&self, arguments: &[&str], side: &str) -> Command {
        let mut skopeo = tool("skopeo");
        skopeo.args(arguments);
        if self.is_private {
            skopeo.arg(format!("--{side}cert-dir")).arg(self.folder.join("certificates"));
            skopeo.args([format!("--{side}creds"), format!("{USER}:{PASSWORD}")]);
        } else {
            skopeo.arg(format!("--{side}tls-verify=false"));
        }
        skopeo
    }

    /// Pushes the image of [`layout`] to `name:tag`.
    pub fn push(&self, layout: &Path, name: &str) {
        self.push_as(layout, name, "oci");
    }

    /// The same with manifests in the form that skopeo calls `format`: `oci`, or Docker's `v2s2`.
    pub fn push_as(&self, layout: &Path, name: &str, format: &str) {
        let target = format!("docker://{}/{name}", self.host);
        let source = format!("oci:{}:image", layout.display());
        let mut copy = self.skopeo(&["copy", "--all", "--quiet", "--insecure-policy", "--format", format], "dest-");
        run(copy.args([source, target]));
    }

    /// What skopeo finds there, byte for byte: an index or a manifest.
    pub fn raw(&self, name: &str) -> String {
        run(self.skopeo(&["inspect", "--raw"], "").arg(format!("docker://{}/{name}", self.host)))
    }
}

/// An image for one machine.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The machine, as an index says it: `architecture`, `os`, and what else there is.
    pub platform: Value,
    /// Files of its one layer: path, mode, content.
    pub files: Vec<(String, u32, Vec<u8>)>,
}

/// Writes an OCI layout to `folder`, with an image of one layer for each of `architectures`; the layer has `text` in
/// it.
pub fn layout(folder: &Path, architectures: &[&str], text: &str) {
    let variant = |architecture: &&str| {
        let content = format!("{architecture} {text}\n").repeat(1000);
        Variant {
            platform: json!({ "architecture": architecture, "os": "linux" }),
            files: vec![("etc/motd".to_owned(), 0o644, content.into_bytes())],
        }
    };
    layout_of(folder, &architectures.iter().map(variant).collect::<Vec<_>>());
}

/// Writes an OCI layout to `folder`, with one image for all of these machines.
pub fn layout_of(folder: &Path, variants: &[Variant]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| -> Value {
        let file = folder.join("blob");
        fs::write(&file, bytes).unwrap();
        let hash = sha256(&file);
        fs::rename(file, blobs.join(&hash)).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len() })
    };
    let image = |variant: &Variant| -> Value {
        let layer = put(&layer(&variant.files), "layer.v1.tar");
        // What an index says of a machine, a configuration says in the same words.
        let mut config = variant.platform.clone();
        config["config"] = json!({});
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [layer["digest"]] });
        let config = put(config.to_string().as_bytes(), "config.v1+json");
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
        let mut manifest = put(manifest.to_string().as_bytes(), "manifest.v1+json");
        manifest["platform"] = variant.platform.clone();
        manifest
    };
    let images: Vec<Value> = variants.iter().map(image).collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": images });
    let mut index = put(index.to_string().as_bytes(), "index.v1+json");
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": "image" });
    let all = json!({ "schemaVersion": 2, "manifests": [index] });
    fs::write(folder.join("index.json"), all.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A layer with these files, all root's.
fn layer(files: &[(String, u32, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A cluster file that takes these images, by input `images` with the lines `more`, and nothing else but a file that
/// stands for a root filesystem, `inputs/root.tar`.
pub fn cluster_file(architecture: &str, images: &[String], more: &str) -> String {
    format!(
        r#"{}[os]
distribution = "kylin"
architecture = "{architecture}"
[[input]]
kind = "rootfs"
name = "root"
path = "inputs/root.tar"
[[input]]
kind = "oci"
name = "images"
images = {images:?}
{more}
"#,
        one_node("registry")
    )
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! For tests: a registry in this process, with every kind of authorization, that can misbehave.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

use crate::inputs::fake_mirror::{answer_all, head, listen};
use crate::store::Digest;

pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Who gets something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// `user:password`.
    Basic(&'static str),
    /// Who has the token that is good now. The token service gives it to `user:password`, or to everybody.
    Bearer(Option<&'static str>),
}

/// What is done with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mood {
    /// Sends this many bytes, then closes the connection, though it promised all.
    Truncate(usize),
    /// Answers with a status and an error as registries have it.
    Status(u16),
    /// Sends on to another address.
    Redirect(String),
    /// Sends other bytes of the same length.
    Lie,
    /// Says another digest than that of what it sends.
    Digest,
}

#[derive(Debug)]
struct State {
    access: Access,
    /// Where tokens are to be had, if not here.
    realm: Option<String>,
    /// Which token is good.
    token: u32,
    /// Content and type, by path.
    files: BTreeMap<String, (Vec<u8>, String)>,
    moods: BTreeMap<String, Vec<Mood>>,
    requests: Vec<String>,
}

/// A running registry.
#[derive(Debug, Clone)]
pub(super) struct FakeRegistry {
    state: Arc<Mutex<State>>,
    pub(super) uri: String,
}

/// A pushed image: the digest that its tag stands for, and the layer.
#[derive(Debug, Clone)]
pub(super) struct Pushed {
    pub(super) digest: String,
    pub(super) size: usize,
    pub(super) layer: String,
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::of(bytes))
}

fn linked(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
}

impl FakeRegistry {
    pub(super) fn start(access: Access) -> Self {
        let (uri, listener) = listen();
        let state = State {
            access,
            realm: None,
            token: 1,
            files: BTreeMap::new(),
            moods: BTreeMap::new(),
            requests: Vec::new(),
        };
        let registry = Self { state: Arc::new(Mutex::new(state)), uri };
        let shared = registry.clone();
        answer_all(listener, move |stream| shared.serve(stream));
        registry
    }

    /// Makes the token that was good until now worthless.
    pub(super) fn expire(&self) {
        self.state.lock().unwrap().token += 1;
    }

    pub(super) fn names_token_service(&self, realm: &str) {
        self.state.lock().unwrap().realm = Some(realm.to_owned());
    }

    /// What the next requests for a path get, in order.
    pub(super) fn moods(&self, path: &str, moods: &[Mood]) {
        self.state.lock().unwrap().moods.insert(path.to_owned(), moods.iter().rev().cloned().collect());
    }

    /// The requests since the last call: path, range, and authorization with what it stands for.
    pub(super) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    pub(super) fn put(&self, path: &str, media_type: &str, bytes: &[u8]) {
        self.state.lock().unwrap().files.insert(path.to_owned(), (bytes.to_vec(), media_type.to_owned()));
    }

    pub(super) fn blob(&self, name: &str, bytes: &[u8]) -> Value {
        self.put(&format!("/v2/{name}/blobs/{}", sha256(bytes)), "application/octet-stream", bytes);
        linked(LAYER, bytes)
    }

    /// Puts a manifest under a tag and its digest.
    pub(super) fn manifest(&self, name: &str, tag: &str, media_type: &str, manifest: &Value) -> Pushed {
        let bytes = manifest.to_string().into_bytes();
        for at in [tag, &sha256(&bytes)] {
            self.put(&format!("/v2/{name}/manifests/{at}"), media_type, &bytes);
        }
        let layer = manifest["layers"][0]["digest"].as_str().unwrap_or_default().to_owned();
        Pushed { digest: sha256(&bytes), size: bytes.len(), layer }
    }

    /// An image of one layer, which has `content`.
    pub(super) fn image(&self, name: &str, tag: &str, architecture: &str, content: &[u8]) -> Pushed {
        let manifest = self.image_manifest(name, architecture, content);
        self.manifest(name, tag, MANIFEST, &manifest)
    }

    /// The manifest of an image whose blobs are pushed.
    pub(super) fn image_manifest(&self, name: &str, architecture: &str, content: &[u8]) -> Value {
        let layer = self.blob(name, content);
        let config =
            json!({ "architecture": architecture, "os": "linux", "rootfs": { "diff_ids": [layer["digest"]] } });
        let config = config.to_string().into_bytes();
        self.blob(name, &config);
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": linked(CONFIG, &config), "layers": [layer] })
    }

    /// An index of images: `architecture` or `architecture/variant`, and the image.
    pub(super) fn index(&self, name: &str, tag: &str, images: &[(&str, &Pushed)]) -> Pushed {
        let entry = |(platform, image): &(&str, &Pushed)| {
            let (architecture, variant) = platform.split_once('/').unwrap_or((*platform, ""));
            let mut platform = json!({ "architecture": architecture, "os": "linux" });
            if architecture == "unknown" {
                platform["os"] = "unknown".into();
            }
            if !variant.is_empty() {
                platform["variant"] = variant.into();
            }
            json!({ "mediaType": MANIFEST, "digest": image.digest, "size": image.size, "platform": platform })
        };
        let entries: Vec<Value> = images.iter().map(entry).collect();
        self.manifest(name, tag, INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }))
    }

    fn serve(&self, mut stream: TcpStream) {
        let lines = head(&stream);
        let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else { return };
        let header = |name: &str| {
            let line = lines.iter().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")));
            line.map(|line| line[name.len() + 2..].to_owned())
        };
        let reply = self.reply(&path, header("authorization"), header("range"), header("accept").as_deref());
        let _ = stream.write_all(&reply);
    }

    fn reply(&self, path: &str, authorization: Option<String>, range: Option<String>, accept: Option<&str>) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        let decoded = authorization.as_deref().map(|value| match value.strip_prefix("Basic ") {
            Some(value) => String::from_utf8(Base64::decode_vec(value).unwrap()).unwrap(),
            None => value.to_owned(),
        });
        let offset: Option<usize> =
            range.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
        let mut line = path.to_owned();
        if let Some(offset) = offset {
            line += &format!(" from {offset}");
        }
        if let Some(decoded) = &decoded {
            line += &format!(" as {decoded}");
        }
        state.requests.push(line);
        let is = |wanted: &str| decoded.as_deref() == Some(wanted);
        if let Some(query) = path.strip_prefix("/token?") {
            if matches!(state.access, Access::Bearer(Some(user)) if !is(user)) {
                return answer(401, "", &error("UNAUTHORIZED", "who are you?"), None);
            }
            assert_eq!(query, "service=fake%20registry&scope=repository%3Aany%3Apull");
            let token = json!({ "access_token": format!("token-{}", state.token), "expires_in": 60 });
            return answer(200, "", token.to_string().as_bytes(), None);
        }
        let allowed = match state.access {
            Access::Open => true,
            Access::Basic(user) => is(user),
            Access::Bearer(_) => is(&format!("Bearer token-{}", state.token)),
        };
        if !allowed {
            let realm = state.realm.clone().unwrap_or_else(|| format!("{}/token", self.uri));
            let challenge = match state.access {
                Access::Basic(_) => "Basic realm=\"lab\"".to_owned(),
                _ => format!("Bearer realm=\"{realm}\",service=\"fake registry\",scope=\"repository:any:pull\""),
            };
            let challenge = format!("WWW-Authenticate: {challenge}\r\n");
            return answer(401, &challenge, &error("UNAUTHORIZED", "authentication required"), None);
        }
        let mood = state.moods.get_mut(path).and_then(Vec::pop);
        match &mood {
            Some(Mood::Status(status)) => return answer(*status, "", &error("TOOMANYREQUESTS", "slow down"), None),
            Some(Mood::Redirect(to)) => return answer(307, &format!("Location: {to}\r\n"), b"", None),
            _ => {}
        }
        let Some((bytes, media_type)) = state.files.get(path) else {
            return answer(404, "", &error("MANIFEST_UNKNOWN", "manifest unknown"), None);
        };
        if path.contains("/manifests/") {
            assert!(accept.unwrap().contains(INDEX) && accept.unwrap().contains(MANIFEST), "{accept:?}");
        }
        let mut bytes = bytes.clone();
        let said = if mood == Some(Mood::Digest) { sha256(b"another") } else { sha256(&bytes) };
        if mood == Some(Mood::Lie) {
            bytes.iter_mut().for_each(|byte| *byte ^= 1);
        }
        let mut headers = format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {said}\r\n");
        let (status, body) = match offset {
            Some(offset) => {
                headers += &format!("Content-Range: bytes {offset}-{}/{}\r\n", bytes.len() - 1, bytes.len());
                (206, &bytes[offset..])
            }
            None => (200, &bytes[..]),
        };
        let cut = if let Some(Mood::Truncate(at)) = mood { Some(at) } else { None };
        answer(status, &headers, body, cut)
    }
}

fn error(code: &str, message: &str) -> Vec<u8> {
    json!({ "errors": [{ "code": code, "message": message }] }).to_string().into_bytes()
}

/// `cut` bytes of the body, if not all of it.
fn answer(status: u16, headers: &str, body: &[u8], cut: Option<usize>) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} So\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), &body[..cut.unwrap_or(body.len())]].concat()
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Archives of container images. The parts of an input are blobs; in each, `@0` to `@9` stand for the digests of the parts
//! before it, as no fuzzer makes a digest that is right. The last part is `index.json`, and `manifest.json` in a second try.

use imgbuild::store::Digest;
use imgbuild::tree::{Entry, FileTree};

use crate::{SEPARATOR, parts, store};

/// Most parts: each is hashed.
const MOST_PARTS: usize = 10;

/// Reads images.
pub fn run(data: &[u8]) {
    let mut blobs: Vec<(String, Vec<u8>)> = Vec::new();
    for part in parts(data).into_iter().take(MOST_PARTS) {
        let blob = resolved(part, &blobs);
        blobs.push((Digest::of(&blob).to_string(), blob));
    }
    let Some((_, last)) = blobs.pop() else { return };
    let (mut layout, mut docker) = (FileTree::new(), FileTree::new());
    let add = |tree: &mut FileTree, path: &str, bytes: &[u8]| {
        tree.insert(path, Entry::file(bytes, 0o644)).expect("a plain path");
    };
    for (number, (digest, blob)) in blobs.iter().enumerate() {
        add(&mut layout, &format!("blobs/sha256/{digest}"), blob);
        add(&mut docker, &number.to_string(), blob);
    }
    add(&mut layout, "oci-layout", b"{}");
    add(&mut layout, "index.json", &last);
    add(&mut docker, "manifest.json", &last);
    imgbuild::fuzz::images(store(), layout);
    imgbuild::fuzz::images(store(), docker);
}

/// A part with the digests in place of `@0` to `@9`.
fn resolved(part: &[u8], before: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(part.len());
    let mut bytes = part.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let digit = bytes.peek().filter(|next| byte == b'@' && next.is_ascii_digit());
        match digit.and_then(|digit| before.get(usize::from(digit - b'0'))) {
            Some((digest, _)) => {
                bytes.next();
                out.extend(digest.bytes());
            }
            None => out.push(byte),
        }
    }
    out
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:@0"]}}"#;
    let manifest = r#"{"schemaVersion":2,"config":{"digest":"sha256:@1"},"layers":[{"digest":"sha256:@0"}]}"#;
    let index = r#"{"manifests":[{"digest":"sha256:@2","platform":{"architecture":"amd64","os":"linux"}},
        {"digest":"sha256:@2","platform":{"architecture":"unknown","os":"unknown"}}]}"#;
    let outer = r#"{"manifests":[{"digest":"sha256:@3","annotations":{"org.opencontainers.image.ref.name":"calico/cni:v1"}},
        {"digest":"sha256:@2","annotations":{"io.containerd.image.name":"a.io/x:1"}}]}"#;
    let docker = r#"[{"Config":"1","RepoTags":["pause:3.10"],"Layers":["0"]}]"#;
    let packed = zstd::encode_all(&b"layer"[..], 1).expect("compressing");
    let of_packed = config.replace("@0", &Digest::of(b"layer").to_string());
    let join = |parts: &[&[u8]]| parts.join(SEPARATOR);
    vec![
        join(&[b"layer", config.as_bytes(), manifest.as_bytes(), index.as_bytes(), outer.as_bytes()]),
        join(&[b"layer", config.as_bytes(), docker.as_bytes()]),
        join(&[&packed, of_packed.as_bytes(), docker.as_bytes()]),
    ]
}

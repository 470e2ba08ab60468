// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/opt/imgbuild/payload.json`: what the payload brings (docs/contracts.md, section 3).

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// What the payload brings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Payload {
    /// Always 1.
    pub schema: u32,
    /// OCI name of the architecture.
    pub architecture: String,
    /// Version of Kubernetes, with `v`; nothing in the payload of a node that runs no pods.
    pub kubernetes: Option<String>,
    /// Version of containerd; as `kubernetes`.
    pub containerd: Option<String>,
    /// References of all images, exactly as kubelet asks for them.
    #[serde(default)]
    pub images: Vec<String>,
    /// The sandbox image; as `kubernetes`.
    pub sandbox_image: Option<String>,
}

/// Reads it.
pub fn read(path: &Path) -> Result<Payload> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("understanding {}", path.display()))
}

fn parse(text: &[u8]) -> Result<Payload> {
    let payload: Payload = serde_json::from_slice(text)?;
    anyhow::ensure!(payload.schema == 1, "schema {} is unknown to this firstboot", payload.schema);
    Ok(payload)
}

/// For tests/fuzz.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &[u8]) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_contract_shows() {
        let payload = parse(
            br#"{ "schema": 1, "architecture": "amd64", "kubernetes": "v1.20.2", "containerd": "1.6.20",
                  "images": ["k8s.gcr.io/pause:3.2"], "sandbox_image": "k8s.gcr.io/pause:3.2" }"#,
        )
        .unwrap();
        assert_eq!(payload.images, ["k8s.gcr.io/pause:3.2"]);
        assert_eq!(payload.kubernetes.as_deref(), Some("v1.20.2"));
        let of_etcd = parse(br#"{ "schema": 1, "architecture": "loong64" }"#).unwrap();
        assert_eq!((of_etcd.kubernetes, of_etcd.images.len()), (None, 0));
        assert!(parse(br#"{"schema": 2}"#).is_err());
    }
}

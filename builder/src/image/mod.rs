// SPDX-License-Identifier: MIT OR Apache-2.0

//! Image formats, one module each. Nothing here knows of Kubernetes or of a running node. See docs/contracts.md.

pub mod cpio;
pub mod fat;
pub mod gpt;
pub mod iso9660;
pub mod oci;
pub mod qcow2;
pub mod seed_iso;
pub mod squashfs;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod testing;
pub mod volume;
pub mod zst;

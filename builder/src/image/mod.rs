//! Image formats, one module each. Nothing here knows of Kubernetes or of a running node. See docs/contracts.md.

pub mod oci;

//! See docs/contracts.md.

pub mod oci;

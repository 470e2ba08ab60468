//! See docs/contracts.md.

pub mod source;

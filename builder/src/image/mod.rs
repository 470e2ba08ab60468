//! See docs/contracts.md.

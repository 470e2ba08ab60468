//! See the crate's README section.

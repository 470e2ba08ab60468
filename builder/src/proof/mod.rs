//! Proofs that an image is complete, before it is shipped. See docs/contracts.md.

pub mod elf;

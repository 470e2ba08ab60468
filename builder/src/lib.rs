// SPDX-License-Identifier: MIT OR Apache-2.0

//! Inputs to images: resolve, fetch, verify, assemble, pack. Knows nothing of a running node.

pub mod assemble;
pub mod cli;
pub mod commands;
pub mod device;
pub mod elf;
pub mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod image;
pub mod inputs;
pub mod lock;
pub mod manifest;
pub mod output;
pub mod pki;
pub mod proof;
pub mod serve;
pub mod signing;
pub mod store;
pub mod tree;

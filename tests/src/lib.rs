// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the tests of whole images share: machines of QEMU and of User-Mode Linux, other people's tools, the image under test,
//! and a small package archive that can be made to misbehave. Knows imgbuild only by its command line and docs/contracts.md.
//!
//! A tool that is missing fails a test, naming its package; nothing is skipped. `tests/install-tools` installs them all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

pub mod archive;
pub mod archive_room;
pub mod build;
pub mod cli;
pub mod cluster;
pub mod compare;
pub mod disk;
pub mod frames;
pub mod https;
pub mod memory;
pub mod place;
pub mod proxy;
pub mod qemu;
pub mod random;
pub mod registry;
pub mod room;
pub mod serial;
pub mod stand_in;
pub mod switch;
pub mod tool;
pub mod uml;
pub mod upstream;
pub mod web;
pub mod workload;

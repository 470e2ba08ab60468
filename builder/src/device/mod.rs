// SPDX-License-Identifier: MIT OR Apache-2.0

//! Disks of the machine that imgbuild runs on: what they are, who uses them, and how an image gets onto one.
//!
//! [`probe`] asks the kernel about a disk, [`plan`] decides which bytes an image needs there, [`write`](mod@write)
//! writes and reads them back.

pub mod plan;
pub mod probe;
pub mod write;

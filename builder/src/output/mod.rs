// SPDX-License-Identifier: MIT OR Apache-2.0

//! Outputs: what a build leaves behind, and how to look into it again. See docs/contracts.md, section 4.

pub mod archive;
pub mod cyclonedx;
pub mod disk;
pub mod esp;
pub mod hybrid;
pub mod inspect;
pub mod inspect_iso;
pub mod iso;
pub mod medium;
mod pieces;
mod place;
mod place_folder;
pub mod provenance;
pub mod pxe;
mod pxe_menu;
pub mod qcow2;
pub mod seed;
pub mod sums;
pub mod verify;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod disk_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod iso_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod medium_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod pxe_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod signed_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod verify_tests;

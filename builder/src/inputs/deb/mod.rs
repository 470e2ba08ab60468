// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packages of Debian and its kin: reading archives' indices, choosing packages, reading packages.

pub mod archive;
pub mod control;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod index;
pub(super) mod names;
pub mod openpgp;
mod pax;
pub mod relation;
pub mod release;
pub mod repository;
pub mod resolve;
pub mod version;

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packages of Debian and its kin: reading archives' indices, choosing packages, reading packages.

pub mod archive;
pub mod control;
pub mod index;
mod names;
pub mod openpgp;
pub mod relation;
pub mod release;
pub mod repository;
pub mod resolve;
pub mod version;

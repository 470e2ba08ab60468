// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packages of Debian and its kin.

pub mod archive;
pub mod control;
mod names;

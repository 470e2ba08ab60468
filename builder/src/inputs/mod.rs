// SPDX-License-Identifier: MIT OR Apache-2.0

//! Inputs to images: where they come from, what exactly they are, and how they get into the store. See docs/contracts.md.

mod checksums;
pub mod deb;
pub mod download;
#[cfg(test)]
mod fake_mirror;
mod http;
mod image;
pub mod image_archive;
pub mod mirror;
pub mod registry;
pub mod request;
pub mod rpm;
pub mod rpm_repository;
pub mod source;
pub mod url;

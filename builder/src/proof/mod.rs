// SPDX-License-Identifier: MIT OR Apache-2.0

//! Proofs that an image is complete before it leaves the building: nothing may turn out to be missing in the room.

pub mod efi;
pub mod elf;
pub mod image_report;
pub mod images;

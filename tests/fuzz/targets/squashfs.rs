// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{init, squashfs};

libfuzzer_sys::fuzz_target!(init: init(squashfs::seeds), |data: &[u8]| squashfs::run(data));

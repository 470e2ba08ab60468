// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{elf, init};

libfuzzer_sys::fuzz_target!(init: init(elf::seeds), |data: &[u8]| elf::run(data));

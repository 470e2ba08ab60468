// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{disk, init};

libfuzzer_sys::fuzz_target!(init: init(disk::seeds), |data: &[u8]| disk::run(data));

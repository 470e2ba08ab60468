// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{archive, init};

libfuzzer_sys::fuzz_target!(init: init(archive::seeds), |data: &[u8]| archive::run(data));

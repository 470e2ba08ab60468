// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{init, rpm};

libfuzzer_sys::fuzz_target!(init: init(rpm::seeds), |data: &[u8]| rpm::run(data));

// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{init, text};

libfuzzer_sys::fuzz_target!(init: init(text::seeds), |data: &[u8]| text::run(data));

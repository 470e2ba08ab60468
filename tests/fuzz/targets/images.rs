// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{images, init};

libfuzzer_sys::fuzz_target!(init: init(images::seeds), |data: &[u8]| images::run(data));

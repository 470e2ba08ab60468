// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{documents, init};

libfuzzer_sys::fuzz_target!(init: init(documents::seeds), |data: &[u8]| documents::run(data));

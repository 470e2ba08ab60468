// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{init, repository};

libfuzzer_sys::fuzz_target!(init: init(repository::seeds), |data: &[u8]| repository::run(data));

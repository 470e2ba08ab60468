// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{init, openpgp};

libfuzzer_sys::fuzz_target!(init: init(openpgp::seeds), |data: &[u8]| openpgp::run(data));

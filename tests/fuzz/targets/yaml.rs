// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_main]

use imgbuild_fuzz::{init, yaml};

libfuzzer_sys::fuzz_target!(init: init(yaml::seeds), |data: &[u8]| yaml::run(data));

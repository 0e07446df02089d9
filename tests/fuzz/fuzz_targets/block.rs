#![no_main]

libfuzzer_sys::fuzz_target!(init: lightv_fuzz::begin(), |input: &[u8]| lightv_fuzz::block::run(input));

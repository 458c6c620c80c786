#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sensor::afpacket::fuzzing::walk(input));

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| lrts_fuzz::bounded(input, lrts_core::fuzz::command_messages));

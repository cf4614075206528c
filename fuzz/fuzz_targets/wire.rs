#![no_main]

use asynchronous_codec::Decoder;
use bytes::BytesMut;
use zeromq::__bench::{Message, ZmqCodec};

libfuzzer_sys::fuzz_target!(|input: &[u8]| lrts_fuzz::bounded(input, |input| {
    let passed = lrts_core::fuzz::wire_passed(input);
    // What the guard lets pass is for the zeromq crate's parser.
    let mut codec = ZmqCodec::default();
    let mut stream = BytesMut::from(&passed[..]);
    while let Some(message) = codec.decode(&mut stream).expect("it is well-formed") {
        if let Message::Message(message) = message {
            assert!(message.len() <= lrts_core::limits::WIRE_FRAMES);
        }
    }
}));

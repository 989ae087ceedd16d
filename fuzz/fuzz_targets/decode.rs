//! Any bytes, as every message: decoding is total, and what decodes means the same when it is
//! encoded again.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use serde::Serialize;
use stdio_protocol::codec::{decode, encode};
use stdio_protocol::message::{
    FromLauncher, FromNode, FromRoot, FromTask, ToLauncher, ToNode, ToRoot,
    ToTask,
};
use stdio_protocol::value::Value;

fn check<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        let again = encode(&message).unwrap();
        assert_eq!(decode::<T>(&again).unwrap(), message);
        assert!(again.len() <= bytes.len(), "longer than what it came from");
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<ToLauncher>(bytes);
    check::<ToRoot>(bytes);
    check::<ToNode>(bytes);
    check::<FromLauncher>(bytes);
    check::<FromRoot>(bytes);
    check::<ToTask>(bytes);
    check::<FromTask>(bytes);
    check::<FromNode>(bytes);
    check::<Value>(bytes);
});

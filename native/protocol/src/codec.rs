//! Messages to bytes and back. Decoding is total: no panic, and allocation bounded by the
//! input's own length (serde reserves at most 1 MiB ahead of what it has seen).

use serde::de::DeserializeOwned;
use serde::Serialize;

#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(#[from] postcard::Error);

pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Malformed> {
    Ok(postcard::to_stdvec(message)?)
}

/// The whole input must be one message: trailing bytes are malformed too.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes)? {
        (message, []) => Ok(message),
        _ => Err(Malformed(postcard::Error::DeserializeBadEncoding)),
    }
}

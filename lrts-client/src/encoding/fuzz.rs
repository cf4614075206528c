use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Bytes, DEPTH, check, decode, encode};

/// Whatever a user's value may be.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Value {
    Nothing(()),
    Flag(bool),
    Natural(u64),
    Integer(i64),
    Real(f64),
    // Before blocks, which are read from lists of small numbers and from text too.
    List(Vec<Value>),
    Text(String),
    Block(ByteBuf),
    Map(BTreeMap<String, Value>),
}

/// Variants within variants, whose depth rmp-serde doesn't count.
#[derive(Serialize, Deserialize)]
pub(crate) enum Chain {
    Link(Box<Chain>),
    Pair(Box<Chain>, Box<Chain>),
    Named { next: Box<Chain> },
    End,
}

impl Chain {
    fn depth(&self) -> usize {
        match self {
            Chain::End => 1,
            Chain::Link(next) | Chain::Named { next } => 1 + next.depth(),
            Chain::Pair(left, right) => 1 + left.depth().max(right.depth()),
        }
    }
}

/// As users write them.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) tags: Vec<Option<char>>,
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, Value>,
}

/// Values of users: payloads, results, checkpoints.
pub fn values(bytes: &[u8]) {
    returns::<Value>(bytes);
    returns::<Record>(bytes);
    returns::<Bytes>(bytes);
    returns::<Vec<u8>>(bytes);
    returns::<(i128, Option<f32>, [u16; 3])>(bytes);
    if let Some(chain) = returns::<Chain>(bytes) {
        assert!(chain.depth() <= DEPTH + 1);
    }
}

/// Decodes a value. What is one comes back from its own bytes.
fn returns<T: Serialize + DeserializeOwned + 'static>(bytes: &[u8]) -> Option<T> {
    let value = decode::<T>(bytes).ok()?;
    assert!(check(bytes).is_ok());
    let written = encode(&value).expect("these types can be encoded");
    let again = decode::<T>(&written).expect("what was encoded is decoded");
    assert_eq!(encode(&again).expect("these types can be encoded"), written);
    Some(value)
}

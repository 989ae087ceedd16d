//! Untyped arguments as they come from Elixir, and how each becomes the type that a call wants.

use serde_bytes::ByteBuf;

use crate::constant::{self, Family};

/// An Elixir term, as far as arguments of calls are concerned.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Value {
    /// Wide enough for every 64-bit argument, signed or not.
    Int(i128),
    Atom(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

/// Why a value cannot be an argument. The first two name the argument's position, from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadArgument {
    /// Wrong type, out of range or a NUL byte: ArgumentError.
    #[error("argument {0} has the wrong type or range")]
    Type(usize),
    /// A constant that this system does not define: `{:error, :enotsup}`.
    #[error("argument {0} names an unknown constant")]
    UnknownConstant(usize),
    /// No such call, or another number of arguments: `:undef`.
    #[error("no such call")]
    Undefined,
}

/// The reason without the position, which only the caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    Type,
    UnknownConstant,
}

/// Conversion of one argument; implemented by every type that the table of calls uses.
pub trait FromValue: Sized {
    /// Shown in the generated documentation.
    const SHAPE: &'static str;

    fn from_value(value: Value) -> Result<Self, Mismatch>;
}

macro_rules! integers {
    ($($type:ty => $shape:literal),*) => {$(
        impl FromValue for $type {
            const SHAPE: &'static str = $shape;

            fn from_value(value: Value) -> Result<Self, Mismatch> {
                match value {
                    Value::Int(n) => <$type>::try_from(n).map_err(|_| Mismatch::Type),
                    _ => Err(Mismatch::Type),
                }
            }
        }
    )*};
}

integers!(i32 => "int32", u32 => "uint32", u64 => "uint64");

impl<T: FromValue> FromValue for Vec<T> {
    const SHAPE: &'static str = "list";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match value {
            Value::List(items) => items.into_iter().map(T::from_value).collect(),
            _ => Err(Mismatch::Type),
        }
    }
}

/// A path: at least one byte, none of them NUL.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Path(pub ByteBuf);

impl FromValue for Path {
    const SHAPE: &'static str = "path";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match value {
            Value::Bytes(bytes) if !bytes.is_empty() && !bytes.contains(&0) => {
                Ok(Self(ByteBuf::from(bytes)))
            }
            _ => Err(Mismatch::Type),
        }
    }
}

macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident => $family:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub i32);

        impl FromValue for $name {
            const SHAPE: &'static str = concat!("const (", stringify!($family), ")");

            fn from_value(value: Value) -> Result<Self, Mismatch> {
                match value {
                    Value::Int(n) => i32::try_from(n).map(Self).map_err(|_| Mismatch::Type),
                    Value::Atom(name) => constant::lookup(Family::$family, &name)
                        .map(Self)
                        .ok_or(Mismatch::UnknownConstant),
                    _ => Err(Mismatch::Type),
                }
            }
        }
    )*};
}

constants! {
    /// `:prio_process` and its kin.
    Prio => Prio,
    /// `:rlimit_nofile` and its kin.
    Resource => Rlimit,
    /// `:sigterm` and its kin, or a number.
    Signal => Signal
}

/// `%{cur: n, max: n}`; infinity is the largest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limit {
    pub cur: u64,
    pub max: u64,
}

impl FromValue for Limit {
    const SHAPE: &'static str = "%{cur: uint64, max: uint64}";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        let Value::Map(pairs) = value else {
            return Err(Mismatch::Type);
        };
        let field = |name: &str| {
            pairs
                .iter()
                .find(|(key, _)| matches!(key, Value::Atom(atom) if atom == name))
                .map(|(_, value)| u64::from_value(value.clone()))
                .unwrap_or(Err(Mismatch::Type))
        };
        Ok(Self {
            cur: field("cur")?,
            max: field("max")?,
        })
    }
}

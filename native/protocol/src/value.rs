//! Untyped values as they come from Elixir and go back to it, and how each becomes the type that
//! a call wants.

use std::cell::Cell;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_bytes::ByteBuf;

use crate::constant::{self, Family};
use crate::errno;

/// An Elixir term, as far as arguments and results of calls are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Wide enough for every 64-bit argument, signed or not.
    Int(i128),
    Atom(String),
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    List(#[serde(deserialize_with = "nested")] Vec<Value>),
    Map(#[serde(deserialize_with = "nested")] Vec<(Value, Value)>),
    Tuple(#[serde(deserialize_with = "nested")] Vec<Value>),
}

/// How deep lists, maps and tuples of a decoded value may lie in one another. No result needs
/// more than five; without a bound two bytes of input would cost one stack frame.
pub const MAX_DEPTH: u8 = 8;

thread_local! {
    static DEPTH: Cell<u8> = const { Cell::new(0) };
}

/// One level of nesting, for as long as it lives.
struct Level;

impl Level {
    fn enter() -> Option<Self> {
        let depth = DEPTH.get();
        (depth < MAX_DEPTH).then(|| {
            DEPTH.set(depth + 1);
            Self
        })
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

fn nested<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let _level = Level::enter().ok_or_else(|| D::Error::custom("nested too deep"))?;
    T::deserialize(deserializer)
}

impl Value {
    pub fn atom(name: &str) -> Self {
        Self::Atom(name.to_owned())
    }

    /// `{:ok, x, …}`
    pub fn ok_with(items: impl IntoIterator<Item = Self>) -> Self {
        Self::Tuple([Self::atom("ok")].into_iter().chain(items).collect())
    }

    /// The value under an atom key of a map.
    fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(pairs) => pairs
                .iter()
                .find(|(key, _)| matches!(key, Self::Atom(atom) if atom == name))
                .map(|(_, value)| value),
            _ => None,
        }
    }
}

/// Whether a result may contain this atom: a closed set, so that no peer can fill the table of
/// atoms, which is never emptied.
pub fn is_result_atom(name: &str) -> bool {
    const WORDS: &[&str] = &[
        "ok",
        "error",
        "true",
        "false",
        "unknown",
        "undef",
        "cur",
        "max",
        "ptr",
        "arg",
        "return_value",
        "exit_status",
        "termsig",
        "stopsig",
        "continued",
        "sig_dfl",
        "sig_ign",
        "sig_info",
        "forward",
    ];
    WORDS.contains(&name)
        || constant::lookup(Family::Signal, name).is_some()
            && !name.bytes().any(|byte| byte.is_ascii_uppercase())
        || errno::is_name(name)
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

integers!(i32 => "int32", u32 => "uint32", i64 => "int64", u64 => "uint64");

impl<T: FromValue> FromValue for Vec<T> {
    const SHAPE: &'static str = "list";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match value {
            Value::List(items) => items.into_iter().map(T::from_value).collect(),
            _ => Err(Mismatch::Type),
        }
    }
}

/// A binary, a charlist or an iolist as plain bytes.
fn bytes(value: Value) -> Result<Vec<u8>, Mismatch> {
    fn append(bytes: &mut Vec<u8>, items: Vec<Value>) -> Result<(), Mismatch> {
        for item in items {
            match item {
                Value::Int(byte) => bytes.push(u8::try_from(byte).map_err(|_| Mismatch::Type)?),
                Value::Bytes(more) => bytes.extend(more),
                Value::List(items) => append(bytes, items)?,
                _ => return Err(Mismatch::Type),
            }
        }
        Ok(())
    }
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::List(items) => {
            let mut bytes = Vec::new();
            append(&mut bytes, items)?;
            Ok(bytes)
        }
        _ => Err(Mismatch::Type),
    }
}

/// A path: at least one byte, none of them NUL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path(pub ByteBuf);

impl FromValue for Path {
    const SHAPE: &'static str = "path";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match Text::from_value(value)? {
            Text(bytes) if bytes.is_empty() => Err(Mismatch::Type),
            Text(bytes) => Ok(Self(bytes)),
        }
    }
}

/// Bytes without a NUL, possibly none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text(pub ByteBuf);

impl FromValue for Text {
    const SHAPE: &'static str = "data without NUL";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match bytes(value)? {
            bytes if bytes.contains(&0) => Err(Mismatch::Type),
            bytes => Ok(Self(bytes.into())),
        }
    }
}

/// Any bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data(pub ByteBuf);

impl FromValue for Data {
    const SHAPE: &'static str = "data";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        Ok(Self(bytes(value)?.into()))
    }
}

/// Bytes to write: as many as one call moves, the rest is left out before it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer(pub ByteBuf);

impl Transfer {
    /// A reply then stays near the size of a datagram too.
    pub const MAX: usize = 65_536;
}

impl FromValue for Transfer {
    const SHAPE: &'static str = "data";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        let mut bytes = bytes(value)?;
        bytes.truncate(Self::MAX);
        Ok(Self(bytes.into()))
    }
}

/// An argument that means nothing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ignored;

impl FromValue for Ignored {
    const SHAPE: &'static str = "ignored";

    fn from_value(_: Value) -> Result<Self, Mismatch> {
        Ok(Self)
    }
}

fn constant(families: &[Family], name: &str) -> Result<i64, Mismatch> {
    families
        .iter()
        .find_map(|family| constant::lookup(*family, name))
        .ok_or(Mismatch::UnknownConstant)
}

macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident => $family:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name(pub i32);

        impl FromValue for $name {
            const SHAPE: &'static str = concat!("const (", stringify!($family), ")");

            fn from_value(value: Value) -> Result<Self, Mismatch> {
                match value {
                    Value::Int(n) => i32::try_from(n).map(Self).map_err(|_| Mismatch::Type),
                    Value::Atom(name) => i32::try_from(constant(&[Family::$family], &name)?)
                        .map(Self)
                        .map_err(|_| Mismatch::UnknownConstant),
                    _ => Err(Mismatch::Type),
                }
            }
        }
    )*};
}

constants! {
    /// `:cap_chown` and its kin.
    Capability => Cap,
    /// `:prio_process` and its kin.
    Prio => Prio,
    /// `:rlimit_nofile` and its kin.
    Resource => Rlimit,
    /// `:sigterm` and its kin, or a number.
    Signal => Signal,
    /// `:f_getfl` and its kin.
    FcntlCommand => Fcntl,
    /// `:pr_set_name` and its kin.
    PrctlOption => Prctl,
    /// `:proc_reap_kill`, `:p_pid` and their kin.
    Procctl => Procctl,
    /// `:ptrace_attach` and its kin.
    PtraceRequest => Ptrace,
    /// `:seccomp_set_mode_filter` and its kin.
    SeccompOperation => Seccomp,
    /// `:af_unix`, `:sock_stream` and their kin.
    Socket => Socket
}

/// `:tiocgwinsz` and its kin, or a number: 32 bits, which headers show signed or unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoctlRequest(pub u32);

impl FromValue for IoctlRequest {
    const SHAPE: &'static str = "const (Ioctl)";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match value {
            Value::Int(n) => bits(n),
            Value::Atom(name) => bits(constant(&[Family::Ioctl], &name)?.into()),
            _ => Err(Mismatch::Type),
        }
        .map(Self)
    }
}

/// 32 bits, written signed or unsigned.
fn bits(number: i128) -> Result<u32, Mismatch> {
    u32::try_from(number)
        .or_else(|_| i32::try_from(number).map(i32::cast_unsigned))
        .map_err(|_| Mismatch::Type)
}

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident => $family:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl $name {
            pub const NONE: Self = Self(0);

            /// As C passes it.
            pub fn as_int(self) -> i32 {
                self.0.cast_signed()
            }
        }

        impl FromValue for $name {
            const SHAPE: &'static str = concat!("flags (", stringify!($family), ")");

            fn from_value(value: Value) -> Result<Self, Mismatch> {
                match value {
                    Value::Int(n) => bits(n).map(Self),
                    Value::List(items) => items
                        .into_iter()
                        .try_fold(0, |flags, item| match item {
                            Value::Int(n) => Ok(flags | bits(n)?),
                            Value::Atom(name) => {
                                Ok(flags | bits(constant(&[Family::$family], &name)?.into())?)
                            }
                            _ => Err(Mismatch::Type),
                        })
                        .map(Self),
                    _ => Err(Mismatch::Type),
                }
            }
        }
    )*};
}

flags! {
    /// `[:o_rdwr, :o_creat]`
    FileFlags => File,
    /// `[:ms_bind, :ms_rdonly]`
    MountFlags => Mount,
    /// `[:cap_fcntl_getfl]`
    CapFcntls => Cap,
    /// `[:clone_newns]`
    CloneFlags => Clone,
    /// `[:wnohang]`
    WaitFlags => Wait,
    /// `[:seccomp_filter_flag_log]`
    SeccompFlags => Seccomp
}

/// `%{cur: n, max: n}`; infinity is the largest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub cur: u64,
    pub max: u64,
}

fn unsigned_field(map: &Value, name: &str) -> Result<u64, Mismatch> {
    match map.field(name) {
        Some(Value::Int(n)) => u64::try_from(*n).map_err(|_| Mismatch::Type),
        _ => Err(Mismatch::Type),
    }
}

impl FromValue for Limit {
    const SHAPE: &'static str = "%{cur: uint64, max: uint64}";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        Ok(Self {
            cur: unsigned_field(&value, "cur")?,
            max: unsigned_field(&value, "max")?,
        })
    }
}

/// `%{sec: n, usec: n}`, or `[]` to wait for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeout(pub Option<Timeval>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeval {
    pub sec: u64,
    pub usec: u64,
}

impl FromValue for Timeout {
    const SHAPE: &'static str = "[] | %{sec: uint64, usec: uint64}";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match value {
            Value::List(items) if items.is_empty() => Ok(Self(None)),
            map => Ok(Self(Some(Timeval {
                sec: unsigned_field(&map, "sec")?,
                usec: unsigned_field(&map, "usec")?,
            }))),
        }
    }
}

/// A C structure: its elements stand one after the other in memory. None at all is NULL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cstruct(pub Vec<Element>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Element {
    /// In place.
    Bytes(ByteBuf),
    /// `{:ptr, n}`: a pointer to this many zero bytes; NULL for none.
    Zeros(u32),
    /// `{:ptr, binary}`: a pointer to a copy; NULL for an empty one.
    Pointer(ByteBuf),
}

impl Cstruct {
    pub const MAX_ELEMENTS: usize = 1023;
    /// In place and pointed to, all together.
    pub const MAX_BYTES: usize = 65_535;

    /// Whoever built it: a peer's message need not have come from Elixir.
    pub fn is_within_limits(&self) -> bool {
        let bytes = self.0.iter().fold(0_usize, |sum, element| {
            sum.saturating_add(match element {
                Element::Bytes(bytes) | Element::Pointer(bytes) => bytes.len(),
                Element::Zeros(count) => usize::try_from(*count).unwrap_or(usize::MAX),
            })
        });
        self.0.len() <= Self::MAX_ELEMENTS && bytes <= Self::MAX_BYTES
    }
}

impl FromValue for Element {
    const SHAPE: &'static str = "binary | {:ptr, n} | {:ptr, binary}";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match value {
            Value::Bytes(bytes) => Ok(Self::Bytes(bytes.into())),
            Value::Tuple(pair) => match <[Value; 2]>::try_from(pair) {
                Ok([Value::Atom(tag), Value::Int(count)]) if tag == "ptr" => u32::try_from(count)
                    .map(Self::Zeros)
                    .map_err(|_| Mismatch::Type),
                Ok([Value::Atom(tag), Value::Bytes(bytes)]) if tag == "ptr" => {
                    Ok(Self::Pointer(bytes.into()))
                }
                _ => Err(Mismatch::Type),
            },
            _ => Err(Mismatch::Type),
        }
    }
}

impl FromValue for Cstruct {
    const SHAPE: &'static str = "cstruct | []";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        let cstruct = Self(Vec::from_value(value)?);
        match cstruct.is_within_limits() {
            true => Ok(cstruct),
            false => Err(Mismatch::Type),
        }
    }
}

/// Bytes without a NUL; `[]` is NULL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nullable(pub Option<ByteBuf>);

impl FromValue for Nullable {
    const SHAPE: &'static str = "data without NUL | []";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        match value {
            Value::List(items) if items.is_empty() => Ok(Self(None)),
            value => Text::from_value(value).map(|Text(bytes)| Self(Some(bytes))),
        }
    }
}

/// `[:cap_read, :cap_write]`, the rights of a descriptor, as cap_rights_t holds them. rights(4)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapRights(pub [u64; 2]);

impl CapRights {
    /// Each right names its word by one of these bits, and so does each word itself.
    const WORDS: [u64; 2] = [1 << 57, 1 << 58];
    const WORD: u64 = 0x1F << 57;

    fn with(mut self, right: u64) -> Result<Self, Mismatch> {
        let words = Self::WORDS.into_iter().zip(&mut self.0);
        let word = words
            .filter_map(|(mark, word)| (right & Self::WORD == mark).then_some(word))
            .next();
        *word.ok_or(Mismatch::Type)? |= right;
        Ok(self)
    }
}

impl FromValue for CapRights {
    const SHAPE: &'static str = "list of const (Cap)";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        let Value::List(items) = value else {
            return Err(Mismatch::Type);
        };
        let none = Self(Self::WORDS);
        items.into_iter().try_fold(none, |rights, item| match item {
            Value::Int(n) => rights.with(u64::try_from(n).map_err(|_| Mismatch::Type)?),
            Value::Atom(name) => rights.with(constant(&[Family::Cap], &name)?.cast_unsigned()),
            _ => Err(Mismatch::Type),
        })
    }
}

/// `struct jail` of jail(2), whole or as a map of its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail(pub Cstruct);

impl Jail {
    /// JAIL_API_VERSION: the one with addresses of both families.
    const VERSION: i128 = 2;
    const FIELDS: [&'static str; 6] = ["version", "path", "hostname", "jailname", "ip4", "ip6"];

    fn from_map(map: &Value) -> Result<Self, Mismatch> {
        let text = |name| match map.field(name) {
            Some(text) => Path::from_value(text.clone()).map(|Path(bytes)| Element::Pointer(bytes)),
            None => Err(Mismatch::Type),
        };
        if map.field("version") != Some(&Value::Int(Self::VERSION)) {
            return Err(Mismatch::Type);
        }
        // struct in_addr and in6_addr: the bytes of the network.
        let ip4 = addresses(map.field("ip4"), |part: u8| [part])?;
        let ip6 = addresses(map.field("ip6"), u16::to_be_bytes)?;
        let mut version = vec![0; size_of::<usize>()];
        version[..4].copy_from_slice(&2_u32.to_ne_bytes());
        let counts = [ip4.0.to_ne_bytes(), ip6.0.to_ne_bytes()].concat();
        Ok(Self(Cstruct(vec![
            Element::Bytes(version.into()),
            text("path")?,
            text("hostname")?,
            text("jailname")?,
            Element::Bytes(counts.into()),
            Element::Pointer(ip4.1.into()),
            Element::Pointer(ip6.1.into()),
        ])))
    }
}

impl FromValue for Jail {
    const SHAPE: &'static str =
        "%{version: 2, path:, hostname:, jailname:, ip4: [tuple], ip6: [tuple]} | cstruct";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        let is_field =
            |key: &Value| matches!(key, Value::Atom(name) if Self::FIELDS.contains(&name.as_str()));
        match &value {
            Value::Map(pairs) if pairs.iter().all(|(key, _)| is_field(key)) => {
                let jail = Self::from_map(&value)?;
                match jail.0.is_within_limits() {
                    true => Ok(jail),
                    false => Err(Mismatch::Type),
                }
            }
            Value::List(items) if !items.is_empty() => Cstruct::from_value(value).map(Self),
            _ => Err(Mismatch::Type),
        }
    }
}

/// Address tuples of four bytes or of eight words: how many, and their bytes.
fn addresses<Part: FromInt, const SIZE: usize>(
    list: Option<&Value>,
    bytes: impl Fn(Part) -> [u8; SIZE],
) -> Result<(u32, Vec<u8>), Mismatch> {
    let Some(Value::List(list)) = list else {
        return Err(Mismatch::Type);
    };
    let mut all = Vec::new();
    for address in list {
        let parts = match address {
            Value::Tuple(parts) if parts.len() == Part::PARTS => parts,
            _ => return Err(Mismatch::Type),
        };
        for part in parts {
            match part {
                Value::Int(n) => all.extend(bytes(Part::from_int(*n).ok_or(Mismatch::Type)?)),
                _ => return Err(Mismatch::Type),
            }
        }
    }
    let count = u32::try_from(list.len()).map_err(|_| Mismatch::Type)?;
    Ok((count, all))
}

/// A part of an address.
trait FromInt: Sized {
    /// Of one address.
    const PARTS: usize;

    fn from_int(number: i128) -> Option<Self>;
}

impl FromInt for u8 {
    const PARTS: usize = 4;

    fn from_int(number: i128) -> Option<Self> {
        Self::try_from(number).ok()
    }
}

impl FromInt for u16 {
    const PARTS: usize = 8;

    fn from_int(number: i128) -> Option<Self> {
        Self::try_from(number).ok()
    }
}

/// An argument that the kernel reads as a number or as an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PtrArg {
    Signed(i64),
    /// Above what the first holds.
    Unsigned(u64),
    /// By address.
    Bytes(ByteBuf),
    /// By address; not empty.
    Cstruct(Cstruct),
}

impl PtrArg {
    /// What a call is told that takes no such argument.
    pub const ZERO: Self = Self::Signed(0);
}

impl FromValue for PtrArg {
    const SHAPE: &'static str = "integer | const | binary | cstruct | []";

    fn from_value(value: Value) -> Result<Self, Mismatch> {
        // The names of different families begin differently.
        const FAMILIES: &[Family] = &[
            Family::Prctl,
            Family::Cap,
            Family::Signal,
            Family::Seccomp,
            Family::Ptrace,
        ];
        match value {
            Value::Int(n) => i64::try_from(n)
                .map(Self::Signed)
                .or_else(|_| u64::try_from(n).map(Self::Unsigned))
                .map_err(|_| Mismatch::Type),
            Value::Atom(name) => constant(FAMILIES, &name).map(Self::Signed),
            Value::Bytes(bytes) => Ok(Self::Bytes(bytes.into())),
            Value::List(items) if items.is_empty() => Ok(Self::ZERO),
            list => Cstruct::from_value(list).map(Self::Cstruct),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    fn deep(levels: usize) -> Value {
        (0..levels).fold(Value::Int(1), |inner, level| match level % 3 {
            0 => Value::List(vec![inner]),
            1 => Value::Tuple(vec![inner]),
            _ => Value::Map(vec![(Value::atom("ok"), inner)]),
        })
    }

    #[test]
    fn nesting_is_bounded_and_the_count_starts_again() {
        let max = usize::from(MAX_DEPTH);
        for _ in 0..3 {
            let bytes = encode(&deep(max + 1)).unwrap();
            assert!(decode::<Value>(&bytes).is_err());
            let bytes = encode(&deep(max)).unwrap();
            assert_eq!(decode::<Value>(&bytes).unwrap(), deep(max));
        }
        // A list of one list of one list …
        assert!(decode::<Value>(&[3, 1].repeat(1 << 20)).is_err());
    }

    #[test]
    fn iolists_are_flattened() {
        let iolist = Value::List(vec![
            Value::Int(97),
            Value::List(vec![Value::Bytes(b"bc".to_vec()), Value::List(vec![])]),
        ]);
        assert_eq!(
            Path::from_value(iolist.clone()),
            Ok(Path(b"abc".to_vec().into()))
        );
        assert_eq!(Data::from_value(iolist), Ok(Data(b"abc".to_vec().into())));
        for bad in [256, -1] {
            let charlist = Value::List(vec![Value::Int(bad)]);
            assert_eq!(Data::from_value(charlist), Err(Mismatch::Type));
        }
    }

    #[test]
    fn flags_are_numbers_or_lists_never_bare_atoms() {
        let list = |items: &[Value]| FileFlags::from_value(Value::List(items.to_vec()));
        assert_eq!(list(&[]), Ok(FileFlags(0)));
        let flags = list(&[Value::atom("O_RDWR"), Value::Int(0x40)]);
        assert_eq!(flags, Ok(FileFlags(0x42)));
        assert_eq!(
            list(&[Value::atom("o_foo")]),
            Err(Mismatch::UnknownConstant)
        );
        let bare = FileFlags::from_value(Value::atom("o_rdwr"));
        assert_eq!(bare, Err(Mismatch::Type));
        let negative = FileFlags::from_value(Value::Int(-1));
        assert_eq!(negative.map(FileFlags::as_int), Ok(-1));
        assert_eq!(
            FileFlags::from_value(Value::Int(1 << 32)),
            Err(Mismatch::Type)
        );
    }

    fn pointer(value: Value) -> Value {
        Value::Tuple(vec![Value::atom("ptr"), value])
    }

    #[test]
    fn cstructs_have_limits() {
        let decode = |items: Vec<Value>| Cstruct::from_value(Value::List(items));
        let whole = Value::Bytes(vec![0; Cstruct::MAX_BYTES]);
        assert!(decode(vec![whole.clone()]).is_ok());
        assert!(decode(vec![whole, pointer(Value::Int(1))]).is_err());
        assert!(decode(vec![pointer(Value::Int(65_536))]).is_err());
        assert!(decode(vec![pointer(Value::Int(-1))]).is_err());
        assert!(decode(vec![pointer(Value::atom("x"))]).is_err());
        assert!(decode(vec![pointer(Value::Int(0)); 1023]).is_ok());
        assert!(decode(vec![pointer(Value::Int(0)); 1024]).is_err());
    }

    #[test]
    fn pointer_arguments_take_every_64_bit_number() {
        let number = |n: i128| PtrArg::from_value(Value::Int(n));
        assert_eq!(number(i64::MIN.into()), Ok(PtrArg::Signed(i64::MIN)));
        assert_eq!(number(u64::MAX.into()), Ok(PtrArg::Unsigned(u64::MAX)));
        assert_eq!(number(i128::from(i64::MIN) - 1), Err(Mismatch::Type));
        assert_eq!(number(i128::from(u64::MAX) + 1), Err(Mismatch::Type));
        let atom = |name: &str| PtrArg::from_value(Value::atom(name));
        assert_eq!(atom("cap_net_raw"), Ok(PtrArg::Signed(13)));
        assert_eq!(atom("foo"), Err(Mismatch::UnknownConstant));
        assert_eq!(PtrArg::from_value(Value::List(vec![])), Ok(PtrArg::ZERO));
    }

    fn jail(fields: &[(&str, Value)]) -> Result<Jail, Mismatch> {
        let pairs = fields
            .iter()
            .map(|(name, value)| (Value::atom(name), value.clone()));
        Jail::from_value(Value::Map(pairs.collect()))
    }

    fn numbers(parts: &[i128]) -> Value {
        Value::Tuple(parts.iter().copied().map(Value::Int).collect())
    }

    fn jail_fields() -> Vec<(&'static str, Value)> {
        let text = |text: &str| Value::Bytes(text.into());
        vec![
            ("version", Value::Int(2)),
            ("path", text("/rescue")),
            ("hostname", text("host")),
            ("jailname", text("name")),
            (
                "ip4",
                Value::List(vec![numbers(&[127, 0, 0, 1]), numbers(&[10, 0, 0, 255])]),
            ),
            (
                "ip6",
                Value::List(vec![numbers(&[0xFE80, 0, 0, 0, 0, 0, 0, 1])]),
            ),
        ]
    }

    /// jail(2): a 32-bit version, three strings, two counts, two arrays.
    #[test]
    fn a_map_becomes_struct_jail() {
        let pad = vec![0; size_of::<usize>() - 4];
        let version = [2_u32.to_ne_bytes().to_vec(), pad].concat();
        let counts = [2_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat();
        let mut ip6 = [0; 16];
        ip6[0] = 0xFE;
        ip6[1] = 0x80;
        ip6[15] = 1;
        let pointer = |bytes: &[u8]| Element::Pointer(bytes.to_vec().into());
        let expected = Cstruct(vec![
            Element::Bytes(version.into()),
            pointer(b"/rescue"),
            pointer(b"host"),
            pointer(b"name"),
            Element::Bytes(counts.into()),
            pointer(&[127, 0, 0, 1, 10, 0, 0, 255]),
            pointer(&ip6),
        ]);
        assert_eq!(jail(&jail_fields()), Ok(Jail(expected.clone())));
        let size: usize = expected
            .0
            .iter()
            .map(|element| match element {
                Element::Bytes(bytes) => bytes.len(),
                _ => size_of::<usize>(),
            })
            .sum();
        // sizeof(struct jail) on FreeBSD amd64.
        assert!(size_of::<usize>() != 8 || size == 56, "{size}");
    }

    #[test]
    fn a_jail_that_is_none_is_refused() {
        let with = |name: &'static str, value: Value| {
            let mut fields = jail_fields();
            fields.retain(|(known, _)| *known != name);
            fields.push((name, value));
            jail(&fields)
        };
        assert!(with("ip4", Value::List(vec![])).is_ok());
        for (name, value) in [
            ("version", Value::Int(1)),
            ("path", Value::Bytes(vec![])),
            ("hostname", Value::Bytes(b"a\0b".to_vec())),
            ("ip4", Value::List(vec![numbers(&[256, 0, 0, 1])])),
            ("ip4", Value::List(vec![numbers(&[1, 2, 3])])),
            ("ip4", numbers(&[127, 0, 0, 1])),
            (
                "ip6",
                Value::List(vec![numbers(&[0, 0, 0, 0, 0, 0, 0, 65_536])]),
            ),
            ("ip6", Value::List(vec![numbers(&[127, 0, 0, 1])])),
            ("ip5", Value::List(vec![])),
        ] {
            assert_eq!(with(name, value), Err(Mismatch::Type), "{name}");
        }
        for name in Jail::FIELDS {
            let fields: Vec<_> = jail_fields()
                .into_iter()
                .filter(|(known, _)| *known != name)
                .collect();
            assert_eq!(jail(&fields), Err(Mismatch::Type), "without {name}");
        }
        assert_eq!(Jail::from_value(Value::List(vec![])), Err(Mismatch::Type));
        let many = vec![numbers(&[127, 0, 0, 1]); Cstruct::MAX_BYTES / 4];
        assert_eq!(with("ip4", Value::List(many)), Err(Mismatch::Type));
    }

    /// sys/capsicum.h: CAPRIGHT(word, bits), and CAP_RIGHTS_VERSION_00.
    #[test]
    fn rights_go_into_the_word_that_they_name() {
        let rights = |list: &[u64]| {
            let list = list.iter().map(|right| Value::Int(i128::from(*right)));
            CapRights::from_value(Value::List(list.collect()))
        };
        let (first, second) = (1 << 57, 1 << 58);
        assert_eq!(rights(&[]), Ok(CapRights([first, second])));
        let (read, write, event) = (first | 1, first | 2, second | 0x20);
        assert_eq!(
            rights(&[read, write, event]),
            Ok(CapRights([first | 3, second | 0x20]))
        );
        for bad in [0, 1, 1 << 59, first | second] {
            assert_eq!(rights(&[bad]), Err(Mismatch::Type), "{bad:x}");
        }
    }

    #[test]
    fn only_the_empty_list_is_null() {
        let of = |value| Nullable::from_value(value).map(|Nullable(bytes)| bytes);
        assert_eq!(of(Value::List(vec![])), Ok(None));
        assert_eq!(of(Value::Bytes(vec![])), Ok(Some(ByteBuf::new())));
        assert_eq!(
            of(Value::Bytes(b"stdio".to_vec())),
            Ok(Some(ByteBuf::from(b"stdio".to_vec())))
        );
        assert_eq!(of(Value::Bytes(vec![0])), Err(Mismatch::Type));
        assert_eq!(of(Value::Int(0)), Err(Mismatch::Type));
    }

    #[test]
    fn atoms_of_results_are_a_closed_set() {
        for name in ["ok", "sigkill", "enoent", "return_value", "unknown"] {
            assert!(is_result_atom(name), "{name}");
        }
        for name in ["SIGKILL", "anything", "", "o_rdwr"] {
            assert!(!is_result_atom(name), "{name}");
        }
    }
}

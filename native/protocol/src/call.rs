//! The one table of calls that a task can be asked to make.
//!
//! Each row gives the name that Elixir uses, the variant, the arguments with their types and a
//! sentence of documentation. From it come the [`Call`] enum that travels, the decoding of
//! Elixir's arguments, the names for error messages and [`TABLE`] for the documentation.
//! The helper's dispatch matches on the enum, so a row without an implementation does not build.

use crate::value::{BadArgument, FromValue, Limit, Mismatch, Path, Prio, Resource, Signal, Value};

/// A row of the table, for documentation.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    /// Names and shapes.
    pub arguments: &'static [(&'static str, &'static str)],
    pub doc: &'static str,
}

macro_rules! calls {
    ($(#[doc = $doc:literal] $name:ident => $variant:ident($($arg:ident: $type:ty),*);)*) => {
        /// One system call, or a fixed short sequence of them, with checked arguments.
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum Call {
            $(#[doc = $doc] $variant { $($arg: $type),* }),*
        }

        impl Call {
            /// Builds the call that Elixir names, or says which argument is at fault.
            pub fn decode(name: &str, arguments: Vec<Value>) -> Result<Self, BadArgument> {
                match name {
                    $(stringify!($name) => {
                        const ARITY: usize = <[&str]>::len(&[$(stringify!($arg)),*]);
                        if arguments.len() != ARITY {
                            return Err(BadArgument::Undefined);
                        }
                        #[allow(unused_mut, unused_variables)]
                        let mut arguments = arguments.into_iter().enumerate();
                        Ok(Self::$variant { $($arg: next::<$type>(&mut arguments)?),* })
                    })*
                    _ => Err(BadArgument::Undefined),
                }
            }

            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => stringify!($name)),*
                }
            }
        }

        pub const TABLE: &[Row] = &[$(Row {
            name: stringify!($name),
            arguments: &[$((stringify!($arg), <$type as FromValue>::SHAPE)),*],
            doc: $doc,
        }),*];
    };
}

fn next<T: FromValue>(
    arguments: &mut impl Iterator<Item = (usize, Value)>,
) -> Result<T, BadArgument> {
    let (position, value) = arguments.next().ok_or(BadArgument::Undefined)?;
    T::from_value(value).map_err(|mismatch| match mismatch {
        Mismatch::Type => BadArgument::Type(position),
        Mismatch::UnknownConstant => BadArgument::UnknownConstant(position),
    })
}

calls! {
    /// Starts a session and a process group, both led by the task. setsid(2)
    setsid => Setsid();
    /// Sets the nice value, -20..19. setpriority(2)
    setpriority => Setpriority(which: Prio, who: u32, priority: i32);
    /// Changes the working directory. chdir(2)
    chdir => Chdir(path: Path);
    /// Sets a soft and a hard limit. setrlimit(2)
    setrlimit => Setrlimit(resource: Resource, limit: Limit);
    /// If root: setgroups(2), setresgid(2), setresuid(2), and checks that root cannot be had back; else nothing.
    setugid => Setugid(uid: u32, gid: u32, groups: Vec<u32>);
    /// No exec of this process or its descendants gains privileges. PR_SET_NO_NEW_PRIVS, prctl(2), Linux 3.5
    no_new_privs => NoNewPrivs();
    /// The signal that the kernel sends when the parent ends; `esrch` if it has ended already. PR_SET_PDEATHSIG, prctl(2)
    set_pdeathsig => SetPdeathsig(signal: Signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_names_constants_and_maps() {
        let limit = Value::Map(vec![
            (Value::Atom("cur".into()), Value::Int(1)),
            (Value::Atom("max".into()), Value::Int(i128::from(u64::MAX))),
        ]);
        let call = Call::decode("setrlimit", vec![Value::Atom("RLIMIT_core".into()), limit]);
        assert_eq!(
            call,
            Ok(Call::Setrlimit {
                resource: Resource(4),
                limit: Limit {
                    cur: 1,
                    max: u64::MAX
                }
            })
        );
    }

    #[test]
    fn names_the_argument_at_fault() {
        let path = |bytes: &[u8]| Call::decode("chdir", vec![Value::Bytes(bytes.to_vec())]);
        assert_eq!(path(b"a\0b"), Err(BadArgument::Type(0)));
        assert_eq!(path(b""), Err(BadArgument::Type(0)));
        assert_eq!(
            Call::decode(
                "setugid",
                vec![Value::Int(1), Value::Int(-1), Value::List(vec![])]
            ),
            Err(BadArgument::Type(1))
        );
        assert_eq!(
            Call::decode("set_pdeathsig", vec![Value::Atom("sigfoo".into())]),
            Err(BadArgument::UnknownConstant(0))
        );
        assert_eq!(
            Call::decode("setsid", vec![Value::Int(1)]),
            Err(BadArgument::Undefined)
        );
        assert_eq!(Call::decode("reboot", vec![]), Err(BadArgument::Undefined));
    }

    #[test]
    fn every_row_is_documented() {
        for row in TABLE {
            assert!(row.doc.trim().len() > 10, "{}", row.name);
        }
    }
}

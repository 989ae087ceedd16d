//! What Elixir asks for, decoded and checked before anything is forked.

use rustler::{
    Atom, Binary, Decoder, Encoder, Env, MapIterator, NifMap, NifUnitEnum, Term, TermType,
};
use serde_bytes::ByteBuf;
use stdio_protocol::call::Call;
use stdio_protocol::message::{Escalation, Exec, Namespaces, Plan, Start, Step};
use stdio_protocol::value::{BadArgument, Value};

use crate::atoms;

/// `%{...}` as `Stdio.Native.spawn/2` documents it.
#[derive(NifMap)]
pub struct Spec<'a> {
    pub file: Binary<'a>,
    pub argv: Vec<Binary<'a>>,
    pub env: Vec<Binary<'a>>,
    pub search: bool,
    pub steps: Vec<StepSpec<'a>>,
    pub net: NetMode,
    pub pid_namespace: bool,
    pub stdin: StdinMode,
    pub stderr: StderrMode,
    pub timeout: Option<u64>,
    pub kill_signal: i32,
    pub kill_timeout: u64,
    pub max_chunk: usize,
}

/// `{name, args, ignored errno numbers, errexit}`
pub type StepSpec<'a> = (Atom, Vec<Term<'a>>, Vec<i32>, bool);

#[derive(NifUnitEnum, Clone, Copy, PartialEq, Eq)]
pub enum NetMode {
    Host,
    None,
}

#[derive(NifUnitEnum, Clone, Copy, PartialEq, Eq)]
pub enum StdinMode {
    Pipe,
    Null,
}

#[derive(NifUnitEnum, Clone, Copy, PartialEq, Eq)]
pub enum StderrMode {
    Separate,
    Stdout,
    Null,
}

/// A step that cannot be made, by its position in the plan.
pub struct BadStep {
    pub index: usize,
    pub reason: BadArgument,
}

impl Spec<'_> {
    /// The start message.
    pub fn start(&self, env: Env<'_>) -> Result<Start, BadStep> {
        let steps = decode_steps(env, &self.steps)?;
        let bytes = |binary: &Binary<'_>| ByteBuf::from(binary.as_slice());
        Ok(Start {
            plan: Plan {
                namespaces: Namespaces {
                    net: self.net == NetMode::None,
                    pid: self.pid_namespace,
                    user_if_unprivileged: self.net == NetMode::None || self.pid_namespace,
                },
                steps,
                exec: Exec {
                    file: bytes(&self.file),
                    argv: self.argv.iter().map(bytes).collect(),
                    env: self.env.iter().map(bytes).collect(),
                    search: self.search,
                },
            },
            timeout_ms: self.timeout,
            escalation: Escalation {
                signal: self.kill_signal,
                grace_ms: self.kill_timeout,
            },
        })
    }
}

pub fn decode_steps(env: Env<'_>, steps: &[StepSpec<'_>]) -> Result<Vec<Step>, BadStep> {
    steps
        .iter()
        .enumerate()
        .map(|(index, (name, arguments, ignore, errexit))| {
            let call =
                decode_call(env, *name, arguments).map_err(|reason| BadStep { index, reason })?;
            Ok(Step {
                call,
                ignore: ignore.clone(),
                errexit: *errexit,
            })
        })
        .collect()
}

/// `{:error, {:step, index, :undef | :enotsup | {:badarg, position}}}`
pub fn bad_step(env: Env<'_>, BadStep { index, reason }: BadStep) -> Term<'_> {
    let reason = match reason {
        BadArgument::Type(position) => (atoms::badarg(), position).encode(env),
        BadArgument::UnknownConstant(_) => atoms::enotsup().encode(env),
        BadArgument::Undefined => atoms::undef().encode(env),
    };
    (atoms::error(), (atoms::step(), index, reason)).encode(env)
}

/// A result as Elixir sees it. Atoms are those of the table of calls and of constants.
pub fn encode_value<'a>(env: Env<'a>, value: &Value) -> Term<'a> {
    let list = |values: &[Value]| -> Vec<Term<'a>> {
        values
            .iter()
            .map(|value| encode_value(env, value))
            .collect()
    };
    match value {
        Value::Int(number) => match (i64::try_from(*number), u64::try_from(*number)) {
            (Ok(number), _) => number.encode(env),
            (_, Ok(number)) => number.encode(env),
            _ => atoms::error().encode(env),
        },
        Value::Atom(name) => Atom::from_str(env, name)
            .unwrap_or_else(|_| atoms::error())
            .to_term(env),
        Value::Bytes(bytes) => {
            let mut binary = rustler::NewBinary::new(env, bytes.len());
            binary.as_mut_slice().copy_from_slice(bytes);
            binary.into()
        }
        Value::List(values) => list(values).encode(env),
        Value::Tuple(values) => rustler::types::tuple::make_tuple(env, &list(values)),
        Value::Map(pairs) => {
            let (keys, values): (Vec<_>, Vec<_>) = pairs
                .iter()
                .map(|(key, value)| (encode_value(env, key), encode_value(env, value)))
                .unzip();
            Term::map_from_term_arrays(env, &keys, &values)
                .unwrap_or_else(|_| atoms::error().encode(env))
        }
    }
}

fn decode_call(env: Env<'_>, name: Atom, arguments: &[Term<'_>]) -> Result<Call, BadArgument> {
    let values = arguments
        .iter()
        .enumerate()
        .map(|(position, term)| value(*term).ok_or(BadArgument::Type(position)))
        .collect::<Result<_, _>>()?;
    let name = name
        .to_term(env)
        .atom_to_string()
        .map_err(|_| BadArgument::Undefined)?;
    Call::decode(&name, values)
}

/// An argument; `None` for what no call takes (floats, pids, funs, …).
fn value(term: Term<'_>) -> Option<Value> {
    match term.get_type() {
        TermType::Integer => term
            .decode::<i64>()
            .map(i128::from)
            .or_else(|_| term.decode::<u64>().map(i128::from))
            .ok()
            .map(Value::Int),
        TermType::Atom => term.atom_to_string().ok().map(Value::Atom),
        TermType::Binary => Binary::decode(term)
            .ok()
            .map(|binary| Value::Bytes(binary.as_slice().to_vec())),
        TermType::List => term
            .into_list_iterator()
            .ok()?
            .map(value)
            .collect::<Option<_>>()
            .map(Value::List),
        TermType::Map => MapIterator::new(term)?
            .map(|(key, item)| Some((value(key)?, value(item)?)))
            .collect::<Option<_>>()
            .map(Value::Map),
        _ => None,
    }
}

/// `:enoent` for 2. A fixed set of names, so no atoms pile up.
pub fn errno_atom(env: Env<'_>, errno: i32) -> Term<'_> {
    Atom::from_str(env, &stdio_protocol::errno::name(errno))
        .unwrap_or_else(|_| rustler::types::atom::error())
        .to_term(env)
}

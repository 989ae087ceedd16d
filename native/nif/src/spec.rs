//! What Elixir asks for, decoded and checked before anything is forked.

use rustler::types::tuple::{get_tuple, make_tuple};
use rustler::{
    Atom, Binary, Decoder, Encoder, Env, MapIterator, NifMap, NifUnitEnum, OwnedBinary, Term,
    TermType,
};
use serde_bytes::ByteBuf;
use stdio_protocol::call::Call;
use stdio_protocol::constant;
use stdio_protocol::message::{Escalation, Exec, Namespaces, Plan, Script, Start, Step, Watch};
use stdio_protocol::value::{is_result_atom, BadArgument, Value};

use crate::atoms;

/// `%{...}` as `Stdio.Native.spawn/2` documents it.
#[derive(NifMap)]
pub struct Spec<'a> {
    pub privilege: Binary<'a>,
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

/// `{name, args, ignored posix atoms, errexit}`
pub type StepSpec<'a> = (Atom, Vec<Term<'a>>, Vec<Atom>, bool);

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
                script: Script {
                    steps,
                    exec: Exec {
                        file: bytes(&self.file),
                        argv: self.argv.iter().map(bytes).collect(),
                        env: self.env.iter().map(bytes).collect(),
                        search: self.search,
                    },
                },
            },
            watch: self.timeout.map(|timeout_ms| Watch {
                timeout_ms,
                escalation: Escalation {
                    signal: self.kill_signal,
                    grace_ms: self.kill_timeout,
                },
            }),
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
                ignore: ignore
                    .iter()
                    .filter_map(|name| errno_number(env, *name))
                    .collect(),
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

/// A call that needs no task. Names of errno values are a closed set, as result atoms are.
pub fn query<'a>(
    env: Env<'a>,
    name: Atom,
    arguments: &[Term<'a>],
) -> Result<Term<'a>, BadArgument> {
    let (name, values) = decode_arguments(env, name, arguments)?;
    let value = constant::query(&name, &values)?;
    match &value {
        Value::Atom(name) => Ok(Atom::from_str(env, name)
            .map_err(|_| BadArgument::Undefined)?
            .to_term(env)),
        value => encode(env, value).ok_or(BadArgument::Undefined),
    }
}

fn decode_call(env: Env<'_>, name: Atom, arguments: &[Term<'_>]) -> Result<Call, BadArgument> {
    let (name, values) = decode_arguments(env, name, arguments)?;
    Call::decode(&name, values)
}

fn decode_arguments(
    env: Env<'_>,
    name: Atom,
    arguments: &[Term<'_>],
) -> Result<(String, Vec<Value>), BadArgument> {
    let values = arguments
        .iter()
        .enumerate()
        .map(|(position, term)| value(*term).ok_or(BadArgument::Type(position)))
        .collect::<Result<_, _>>()?;
    let name = name
        .to_term(env)
        .atom_to_string()
        .map_err(|_| BadArgument::Undefined)?;
    Ok((name, values))
}

/// Lists, maps and tuples of arguments may lie this deep in one another: an iolist that was built
/// by appending is deep, and the decoder must not exhaust a scheduler's stack.
const MAX_DEPTH: usize = 64;

/// An argument; `None` for what no call takes (floats, pids, funs, …). A list that is too deep may be
/// an iolist, which the VM flattens without a stack.
fn value(term: Term<'_>) -> Option<Value> {
    value_within(term, MAX_DEPTH).or_else(|| {
        let bytes = Binary::from_iolist(term).ok()?;
        term.is_list()
            .then(|| Value::Bytes(bytes.as_slice().to_vec()))
    })
}

fn value_within(term: Term<'_>, depth: usize) -> Option<Value> {
    let inner = |term: Term<'_>| value_within(term, depth.checked_sub(1)?);
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
        TermType::List => {
            let mut items = Vec::new();
            let mut rest = term;
            while let Ok((head, tail)) = rest.list_get_cell() {
                items.push(inner(head)?);
                rest = tail;
            }
            // The tail of an improper list: an iolist may end in a binary.
            match rest.get_type() {
                TermType::List => {}
                TermType::Binary => items.push(inner(rest)?),
                _ => return None,
            }
            Some(Value::List(items))
        }
        TermType::Map => MapIterator::new(term)?
            .map(|(key, item)| Some((inner(key)?, inner(item)?)))
            .collect::<Option<_>>()
            .map(Value::Map),
        TermType::Tuple => get_tuple(term)
            .ok()?
            .into_iter()
            .map(inner)
            .collect::<Option<_>>()
            .map(Value::Tuple),
        _ => None,
    }
}

/// A result of a call; `None` if it holds an atom that no call gives, or a number beyond 64 bits.
pub fn encode<'a>(env: Env<'a>, value: &Value) -> Option<Term<'a>> {
    let encode_all = |items: &[Value]| -> Option<Vec<Term<'a>>> {
        items.iter().map(|item| encode(env, item)).collect()
    };
    match value {
        Value::Int(number) => i64::try_from(*number)
            .map(|number| number.encode(env))
            .or_else(|_| u64::try_from(*number).map(|number| number.encode(env)))
            .ok(),
        // Atoms are never freed: only those of a closed set are made.
        Value::Atom(name) if is_result_atom(name) => {
            Some(Atom::from_str(env, name).ok()?.to_term(env))
        }
        Value::Atom(_) => None,
        Value::Bytes(bytes) => {
            let mut binary = OwnedBinary::new(bytes.len());
            binary.as_mut_slice().copy_from_slice(bytes);
            Some(binary.release(env).to_term(env))
        }
        Value::List(items) => Some(encode_all(items)?.encode(env)),
        Value::Tuple(items) => Some(make_tuple(env, &encode_all(items)?)),
        Value::Map(pairs) => {
            let pairs = pairs
                .iter()
                .map(|(key, item)| Some((encode(env, key)?, encode(env, item)?)))
                .collect::<Option<Vec<_>>>()?;
            Term::map_from_pairs(env, &pairs).ok()
        }
    }
}

/// A name that is no errno is never returned, and so needs no number.
fn errno_number(env: Env<'_>, name: Atom) -> Option<i32> {
    let name = name.to_term(env).atom_to_string().ok()?;
    stdio_protocol::errno::number(&name)
}

/// `:enoent` for 2. A fixed set of names, so no atoms pile up.
pub fn errno_atom(env: Env<'_>, errno: i32) -> Term<'_> {
    Atom::from_str(env, &stdio_protocol::errno::name(errno))
        .unwrap_or_else(|_| rustler::types::atom::error())
        .to_term(env)
}

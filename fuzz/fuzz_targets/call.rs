//! Any arguments for any call: decoding is total, names the position of a bad one, and what it
//! lets through has the properties that the helper relies on and survives the journey.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use stdio_protocol::call::{rows, Call};
use stdio_protocol::codec::{decode, encode};
use stdio_protocol::constant;
use stdio_protocol::errno;
use stdio_protocol::value::{is_result_atom, BadArgument, Value};

const ATOMS: &[&str] = &[
    "cur",
    "max",
    "sec",
    "usec",
    "ptr",
    "ok",
    "error",
    "sigterm",
    "SIGKILL",
    "rlimit_nofile",
    "clone_newns",
    "ms_bind",
    "o_rdonly",
    "pr_set_name",
    "f_getfl",
    "tiocgwinsz",
    "af_unix",
    "",
];

fn value(input: &mut Unstructured<'_>, depth: u8) -> Result<Value> {
    Ok(
        match input.int_in_range(0..=if depth == 0 { 4 } else { 7 })? {
            0 => Value::Int(input.arbitrary::<i8>()?.into()),
            1 => Value::Int(input.arbitrary::<i64>()?.into()),
            2 => Value::Int(input.arbitrary::<u64>()?.into()),
            3 => Value::Atom(match input.arbitrary()? {
                true => (*input.choose(ATOMS)?).to_owned(),
                false => input.arbitrary()?,
            }),
            4 => Value::Bytes(input.arbitrary()?),
            5 => Value::List(values(input, depth - 1)?),
            6 => Value::Tuple(values(input, depth - 1)?),
            _ => {
                let (keys, items) = (values(input, depth - 1)?, values(input, depth - 1)?);
                Value::Map(keys.into_iter().zip(items).collect())
            }
        },
    )
}

fn values(input: &mut Unstructured<'_>, depth: u8) -> Result<Vec<Value>> {
    let count = input.int_in_range(0..=6)?;
    (0..count).map(|_| value(input, depth)).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let Ok(index) = input.choose_index(rows().count() + 1) else {
        return;
    };
    let Ok(arguments) = values(&mut input, 4) else {
        return;
    };
    let Some(row) = rows().nth(index) else {
        let name: String = input.arbitrary().unwrap_or_default();
        // Total, whatever it says.
        let _ = constant::query(&name, &arguments);
        let _ = errno::number(&name);
        let _ = is_result_atom(&name);
        if !rows().any(|row| row.name == name) {
            assert_eq!(Call::decode(&name, arguments), Err(BadArgument::Undefined));
        }
        return;
    };
    let count = arguments.len();
    match Call::decode(row.name, arguments) {
        Ok(call) => {
            assert!(row.takes(count));
            assert_eq!(call.name(), row.name);
            let bytes = encode(&call).unwrap();
            assert_eq!(decode::<Call>(&bytes).unwrap(), call);
        }
        Err(BadArgument::Undefined) => assert!(!row.takes(count)),
        Err(BadArgument::Type(at) | BadArgument::UnknownConstant(at)) => assert!(at < count),
    }
});

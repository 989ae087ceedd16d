//! Any plan that decodes: what the helper makes ready before it forks, and what its filters say.
//! The helper's own code, over a `sys` that executes nothing.
#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;
use stdio_protocol::codec::decode;
use stdio_protocol::filter::CallFilter;
use stdio_protocol::message::{Exec, Program, Setting, Step, ToNode, ToRoot};

#[path = "../../native/supervise/src/exec.rs"]
mod exec;

mod sys {
    use std::convert::Infallible;
    use std::ffi::{CStr, CString};
    use std::os::fd::RawFd;

    use nix::errno::Errno;

    pub struct Vector(Vec<CString>);

    impl Vector {
        pub fn new(strings: Vec<CString>) -> Self {
            Self(strings)
        }
    }

    /// Never a file of this machine: the look-up behind it must not depend on one.
    pub fn execve(file: &CStr, _: &Vector, _: &Vector) -> Result<Infallible, Errno> {
        Err(match file.to_bytes().last() {
            Some(b'a'..=b'k') => Errno::ENOEXEC,
            Some(b'l'..=b'z') => Errno::EACCES,
            _ => Errno::ENOENT,
        })
    }

    pub fn execve_descriptor(_: RawFd, _: &Vector, _: &Vector) -> Result<Infallible, Errno> {
        Err(Errno::EBADF)
    }
}

fn program(exec: Exec) {
    let nul = [&exec.file]
        .into_iter()
        .chain(&exec.argv)
        .chain(&exec.env)
        .any(|s| s.contains(&0));
    match exec::prepare(exec) {
        Ok(prepared) => {
            assert!(exec::apply(&prepared).is_err());
        }
        Err(errno) => assert!(nul, "{errno} without a NUL"),
    }
}

fn steps(steps: &[Step], filter: &CallFilter) {
    for step in steps {
        let name = step.call.name();
        assert!(stdio_protocol::call::TABLE
            .iter()
            .any(|row| row.name == name));
        let _ = filter.allows(name);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut filter = CallFilter::default();
    match decode::<ToRoot>(bytes) {
        Ok(ToRoot::Start(start)) => {
            steps(&start.plan.script.steps, &filter);
            program(start.plan.script.exec);
        }
        Ok(ToRoot::Node(message)) => match *message {
            ToNode::Exec {
                steps: list,
                program: how,
                ..
            } => {
                steps(&list, &filter);
                match how {
                    Program::Path { exec, .. } => program(exec),
                    Program::Search { .. } => {}
                    Program::Descriptor { fd, argv, env } => {
                        drop(exec::prepare_descriptor(fd, argv, env));
                    }
                }
            }
            ToNode::Set {
                setting: Setting::Filter { own, children },
                ..
            } => {
                let names = ["fork", "exit", "filter", ""];
                let before = names.map(|name| filter.allows(name));
                filter.narrow(&own);
                filter.narrow(&children);
                let after = names.map(|name| filter.allows(name));
                assert!(before
                    .iter()
                    .zip(after)
                    .all(|(before, after)| *before || !after));
            }
            _ => {}
        },
        _ => {}
    }
});

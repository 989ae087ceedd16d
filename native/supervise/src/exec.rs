//! execve, with and without a search along PATH.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::stat::{stat, SFlag};
use serde_bytes::ByteBuf;
use stdio_protocol::message::Exec;

use crate::sys::{self, Vector};

/// Used when the program's environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// Everything that execve needs, allocated and checked before the fork.
pub struct Prepared {
    file: File,
    argv: Vector,
    env: Vector,
}

enum File {
    Path(CString),
    /// Where to look for it, in order.
    Search(Vec<CString>),
    /// Close-on-exec, so a `#!` script cannot be run by it: its interpreter could not open it.
    Descriptor(RawFd),
}

/// What an open descriptor names. fexecve(3)
pub fn prepare_descriptor(
    fd: RawFd,
    argv: Vec<ByteBuf>,
    env: Vec<ByteBuf>,
) -> Result<Prepared, Errno> {
    Ok(Prepared {
        file: File::Descriptor(fd),
        argv: vector(argv)?,
        env: vector(env)?,
    })
}

fn vector(list: Vec<ByteBuf>) -> Result<Vector, Errno> {
    let strings: Result<Vec<_>, _> = list.into_iter().map(|item| cstring(&item)).collect();
    Ok(Vector::new(strings?))
}

/// `EINVAL` for a NUL byte: the NIF lets none through.
pub fn prepare(exec: Exec) -> Result<Prepared, Errno> {
    let file = if exec.search && !exec.file.contains(&b'/') {
        let directories = search_path(&exec.env).split(|byte| *byte == b':');
        // execvp(3): there is no program without a name.
        let directories = directories.filter(|_| !exec.file.is_empty());
        let candidates = directories.map(|directory| candidate(directory, &exec.file));
        File::Search(candidates.collect::<Result<_, _>>()?)
    } else {
        File::Path(cstring(&exec.file)?)
    };
    Ok(Prepared {
        file,
        argv: vector(exec.argv)?,
        env: vector(exec.env)?,
    })
}

/// Runs in the task as its last act. Returns only on failure: the first errno that is not about
/// finding the file; else `EACCES` if a file was found that may not be executed; else `ENOENT`.
pub fn apply(prepared: &Prepared) -> Result<Infallible, Errno> {
    match &prepared.file {
        File::Path(file) => sys::execve(file, &prepared.argv, &prepared.env),
        File::Search(candidates) => search(candidates, prepared),
        File::Descriptor(fd) => sys::execve_descriptor(*fd, &prepared.argv, &prepared.env),
    }
}

fn search(candidates: &[CString], prepared: &Prepared) -> Result<Infallible, Errno> {
    let mut result = Errno::ENOENT;
    for file in candidates {
        match sys::execve(file, &prepared.argv, &prepared.env) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => {}
            // An unsearchable or a like-named directory is an unusable entry, not a find.
            Err(Errno::EACCES) => {
                if is_file(file) {
                    result = Errno::EACCES;
                }
            }
            other => return other,
        }
    }
    Err(result)
}

fn is_file(path: &CString) -> bool {
    stat(path.as_c_str())
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG)
}

fn search_path(env: &[ByteBuf]) -> &[u8] {
    env.iter()
        .find_map(|entry| entry.strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH)
}

/// An empty entry is the working directory, as everywhere.
fn candidate(directory: &[u8], file: &[u8]) -> Result<CString, Errno> {
    match directory {
        [] => cstring(&[b"./", file].concat()),
        _ => cstring(
            std::path::Path::new(OsStr::from_bytes(directory))
                .join(OsStr::from_bytes(file))
                .as_os_str()
                .as_bytes(),
        ),
    }
}

fn cstring(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(file: &str, env: &[&str]) -> Vec<CString> {
        let bytes = |text: &str| ByteBuf::from(text.as_bytes().to_vec());
        let prepared = prepare(Exec {
            file: bytes(file),
            argv: vec![],
            env: env.iter().copied().map(bytes).collect(),
            search: true,
        });
        match prepared.unwrap().file {
            File::Search(candidates) => candidates,
            File::Path(path) => vec![path],
            File::Descriptor(_) => unreachable!(),
        }
    }

    #[test]
    fn searches_the_path_of_the_programs_environment() {
        let found = candidates("ls", &["A=1", "PATH=/x::/y", "PATH=/z"]);
        assert_eq!(
            found,
            [c"/x/ls".into(), c"./ls".into(), c"/y/ls".into()] as [CString; 3]
        );
    }

    #[test]
    fn a_missing_path_is_bin_and_usr_bin() {
        let found = candidates("ls", &[]);
        assert_eq!(
            found,
            [c"/bin/ls".into(), c"/usr/bin/ls".into()] as [CString; 2]
        );
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        assert_eq!(candidates("a/b", &["PATH=/x"]), [CString::from(c"a/b")]);
    }

    #[test]
    fn an_errno_that_is_not_about_finding_ends_the_search() {
        let directory = std::env::temp_dir().join(format!("stdio-exec-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("dir/ls-x")).unwrap();
        let file = directory.join("ls-x");
        std::fs::write(&file, "text").unwrap();
        let path = |parts: &[&str]| {
            let parts: Vec<_> = parts
                .iter()
                .map(|part| directory.join(part).display().to_string())
                .collect();
            format!("PATH={}", parts.join(":"))
        };
        let run = |parts: &[&str]| {
            let exec = Exec {
                file: ByteBuf::from(b"ls-x".to_vec()),
                argv: vec![],
                env: vec![ByteBuf::from(path(parts).into_bytes())],
                search: true,
            };
            apply(&prepare(exec).unwrap()).unwrap_err()
        };
        assert_eq!(run(&["missing"]), Errno::ENOENT);
        assert_eq!(
            run(&["missing", "dir"]),
            Errno::ENOENT,
            "a directory is no find"
        );
        assert_eq!(run(&["", "missing"]), Errno::EACCES, "not executable");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}

//! The one table of calls that a task can be asked to make.
//!
//! Each row gives the name that Elixir uses, the variant, the arguments with their types and a
//! sentence of documentation. From it come the [`Call`] enum that travels, the decoding of
//! Elixir's arguments, the names for error messages and [`TABLE`] for the documentation.
//! The helper's dispatch matches on the enum, so a row without an implementation does not build.

use crate::sys;
use crate::value::{
    BadArgument, CapFcntls, CapRights, Capability, CloneFlags, Cstruct, Data, FcntlCommand,
    FileFlags, FromValue, Ignored, IoctlRequest, Jail, Limit, Mismatch, MountFlags, Nullable, Path,
    PrctlOption, Prio, Procctl, PtrArg, PtraceRequest, Resource, SeccompFlags, SeccompOperation,
    Signal, Socket, Text, Timeout, Transfer, Value, WaitFlags,
};

/// A row of the table, for documentation.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    /// Names and shapes.
    pub arguments: &'static [(&'static str, &'static str)],
    /// How many of the last arguments may be left out.
    pub optional: usize,
    pub doc: &'static str,
}

impl Row {
    /// Whether this system has it. One that it lacks is decoded by nobody.
    pub fn is_here(&self) -> bool {
        !sys::ABSENT.contains(&self.name)
    }

    /// Whether Elixir may call it with this many arguments.
    pub fn takes(&self, arity: usize) -> bool {
        let most = self.arguments.len();
        (most - self.optional..=most).contains(&arity)
    }
}

/// Those that this system has.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(|row| row.is_here())
}

/// `name => Variant(argument: Type, …);`, where `argument: Type = value` may be left out, as may
/// all after it.
macro_rules! calls {
    ($(
        #[doc = $doc:literal]
        $name:ident => $variant:ident($($arg:ident: $type:ty $(= $default:expr)?),* $(,)?);
    )*) => {
        /// One system call, or a fixed short sequence of them, with checked arguments.
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum Call {
            $(#[doc = $doc] $variant { $($arg: $type),* }),*
        }

        impl Call {
            /// Builds the call that Elixir names, or says which argument is at fault.
            pub fn decode(name: &str, arguments: Vec<Value>) -> Result<Self, BadArgument> {
                let arity = arguments.len();
                if !rows().any(|row| row.name == name && row.takes(arity)) {
                    return Err(BadArgument::Undefined);
                }
                match name {
                    $(stringify!($name) => {
                        #[allow(unused_mut, unused_variables)]
                        let mut arguments = arguments.into_iter().enumerate();
                        Ok(Self::$variant { $($arg: {
                            let default: Option<$type> = None $(.or(Some($default)))?;
                            next(&mut arguments, default)?
                        }),* })
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
            optional: 0 $($(+ <[&str]>::len(&[stringify!($default)]))?)*,
            doc: $doc,
        }),*];
    };
}

fn next<T: FromValue>(
    arguments: &mut impl Iterator<Item = (usize, Value)>,
    default: Option<T>,
) -> Result<T, BadArgument> {
    let Some((position, value)) = arguments.next() else {
        return default.ok_or(BadArgument::Undefined);
    };
    T::from_value(value).map_err(|mismatch| match mismatch {
        Mismatch::Type => BadArgument::Type(position),
        Mismatch::UnknownConstant => BadArgument::UnknownConstant(position),
    })
}

calls! {
    /// Starts a session and a process group, both led by the task: `{:ok, pid}`. setsid(2)
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

    /// The real user id, bare. getuid(2)
    getuid => Getuid();
    /// The real group id, bare. getgid(2)
    getgid => Getgid();
    /// The process group, bare. getpgrp(2)
    getpgrp => Getpgrp();
    /// The process id as the task sees it, bare: 1 in a new PID namespace. getpid(2)
    getpid => Getpid();
    /// `{:ok, real, effective, saved}`. getresuid(2)
    getresuid => Getresuid();
    /// `{:ok, real, effective, saved}`. getresgid(2)
    getresgid => Getresgid();
    /// `{:ok, pid}` of the session's leader; 0 asks for the task's own. getsid(2)
    getsid => Getsid(pid: i32);
    /// Moves a process into a process group. setpgid(2)
    setpgid => Setpgid(pid: i32, pgid: i32);
    /// Sets the user ids. setuid(2)
    setuid => Setuid(uid: u32);
    /// Sets the group ids. setgid(2)
    setgid => Setgid(gid: u32);
    /// Sets the real, effective and saved user id; 4294967295 leaves one as it is. setresuid(2)
    setresuid => Setresuid(real: u32, effective: u32, saved: u32);
    /// Sets the real, effective and saved group id; 4294967295 leaves one as it is. setresgid(2)
    setresgid => Setresgid(real: u32, effective: u32, saved: u32);
    /// Sets the supplementary groups. setgroups(2)
    setgroups => Setgroups(groups: Vec<u32>);
    /// `{:ok, groups}` in the order that the kernel gives. getgroups(2)
    getgroups => Getgroups();
    /// `{:ok, %{cur: n, max: n}}`; infinity is 18446744073709551615. getrlimit(2)
    getrlimit => Getrlimit(resource: Resource);
    /// `{:ok, name}`. gethostname(2)
    gethostname => Gethostname();
    /// Sets the name of the UTS namespace. sethostname(2)
    sethostname => Sethostname(name: Data);
    /// `{:ok, path}` of the working directory. getcwd(2)
    getcwd => Getcwd();
    /// `{:ok, nice}`, -20..19. getpriority(2)
    getpriority => Getpriority(which: Prio, who: u32);
    /// The `KEY=value` strings of the task's environment, bare. environ(7)
    environ => Environ();
    /// The value of a variable, bare, or `false`. getenv(3)
    getenv => Getenv(name: Text);
    /// Sets a variable; with `overwrite` 0 an existing one stays. setenv(3)
    setenv => Setenv(name: Text, value: Text, overwrite: i32);
    /// Removes a variable. unsetenv(3)
    unsetenv => Unsetenv(name: Text);
    /// Removes all variables. clearenv(3)
    clearenv => Clearenv();
    /// Changes what ps(1) shows as the command line; empty: what it was at first.
    setproctitle => Setproctitle(title: Data);
    /// Sends a signal to a process, to a group (-pgid), to the own group (0) or to all (-1). kill(2)
    kill => Kill(pid: i32, signal: Signal);
    /// `{:ok, pid, status, [{:exit_status, n} | {:termsig, s} | {:stopsig, s} | :continued]}`. waitpid(2)
    waitpid => Waitpid(pid: i32, flags: WaitFlags);

    /// `{:ok, result, a2, a3, a4, a5}`, with the final contents of what was passed by address. prctl(2)
    prctl => Prctl(option: PrctlOption, a2: PtrArg, a3: PtrArg, a4: PtrArg, a5: PtrArg);
    /// Restricts the system calls of this process and its descendants. seccomp(2), Linux 3.17
    seccomp => Seccomp(operation: SeccompOperation, flags: SeccompFlags, arguments: Cstruct);
    /// `{:ok, result, addr, data}`, with the final contents of what was passed by address. ptrace(2)
    ptrace => Ptrace(request: PtraceRequest, pid: i32, addr: PtrArg, data: PtrArg);
    /// Moves the task into new namespaces. unshare(2)
    unshare => Unshare(flags: CloneFlags);
    /// Moves the task into a namespace that a descriptor names. setns(2)
    setns => Setns(fd: i32, nstype: CloneFlags = CloneFlags::NONE);
    /// Mounts; an empty source, type or data is NULL. The last argument is for other systems. mount(2)
    mount => Mount(
        source: Text,
        target: Path,
        fstype: Text,
        flags: MountFlags,
        data: Data,
        options: Ignored = Ignored,
    );
    /// Unmounts. umount(2)
    umount => Umount(path: Path);
    /// Unmounts with flags, as `:mnt_detach`. umount2(2)
    umount2 => Umount2(path: Path, flags: MountFlags);
    /// Puts a mount in the place of the root mount. pivot_root(2)
    pivot_root => PivotRoot(new: Path, old: Path);
    /// Changes the root directory, and nothing else. chroot(2)
    chroot => Chroot(path: Path);

    /// Binds `source` on `target`, which is looked up with `root` as the root directory: no symbolic link in there leads outside. Flags (`:ms_rdonly`, `:ms_nosuid` …) are added to those the source has; `:ms_rec`, or if the kernel insists: with all that is mounted below. open_tree(2), mount_setattr(2)
    bind_in => BindIn(root: Path, source: Path, target: Path, flags: MountFlags);
    /// Makes the file `target`, looked up as in `bind_in`, and binds the character device `source` on it, so that nobody can change its mode or owner. `enoent` if there is no such device.
    device_in => DeviceIn(root: Path, source: Path, target: Path);
    /// Mounts a new file system on `target`, looked up as in `bind_in`; the data are its options, with commas between them. fsopen(2)
    mount_in => MountIn(root: Path, fstype: Text, target: Path, flags: MountFlags, data: Data);
    /// Mounts proc(5) on `target`, looked up as in `bind_in`. Of what the task may write, that which is the whole system's is made read-only (`sys`, `sysrq-trigger`, `irq`, `bus`).
    proc_in => ProcIn(root: Path, target: Path, flags: MountFlags);
    /// Adds flags to the mount at `target`, looked up as in `bind_in`. mount_setattr(2)
    remount_in => RemountIn(root: Path, target: Path, flags: MountFlags);
    /// Makes a directory; all but its last name is looked up as in `bind_in`. mkdirat(2)
    mkdir_in => MkdirIn(root: Path, path: Path, mode: u32);
    /// Makes a symbolic link at `path`; all but its last name is looked up as in `bind_in`. symlinkat(2)
    symlink_in => SymlinkIn(root: Path, target: Path, path: Path);
    /// No later program has other capabilities than these, root's included. PR_CAPBSET_DROP, prctl(2)
    limit_capabilities => LimitCapabilities(keep: Vec<Capability>);

    /// `{:ok, fd}`; the program does not inherit it. open(2)
    open => Open(path: Path, flags: FileFlags, mode: u32 = 0);
    /// Closes a descriptor; those of the helper itself are `ebadf`, here and below. close(2)
    close => Close(fd: i32);
    /// `{:ok, data}` of one read(2) of at most 65536 bytes; none at the end.
    read => Read(fd: i32, count: u64);
    /// `{:ok, n}` of one write(2) of at most 65536 bytes.
    write => Write(fd: i32, data: Transfer);
    /// Writes to an existing file with one write(2), which must take all of it.
    write_file => WriteFile(path: Path, data: Data);
    /// Moves the position: 0 from the start, 1 from where it is, 2 from the end. lseek(2)
    lseek => Lseek(fd: i32, offset: i64, whence: i32);
    /// `{:ok, n}`; commands that take an address are `einval`. fcntl(2)
    fcntl => Fcntl(fd: i32, command: FcntlCommand, argument: i64 = 0);
    /// `{:ok, names}`, `.` and `..` among them. readdir(3)
    readdir => Readdir(path: Path);
    /// Makes a directory. mkdir(2)
    mkdir => Mkdir(path: Path, mode: u32);
    /// Removes an empty directory. rmdir(2)
    rmdir => Rmdir(path: Path);
    /// Removes a name of a file. unlink(2)
    unlink => Unlink(path: Path);
    /// Makes a named pipe. mkfifo(3)
    mkfifo => Mkfifo(path: Path, mode: u32);
    /// Sets permission bits. chmod(2)
    chmod => Chmod(path: Path, mode: u32);
    /// Sets owner and group; 4294967295 leaves one as it is. chown(2)
    chown => Chown(path: Path, uid: u32, gid: u32);
    /// Gives a file another name. link(2)
    link => Link(old: Path, new: Path);
    /// Makes a symbolic link at `path`. symlink(2)
    symlink => Symlink(target: Path, path: Path);
    /// `{:ok, %{return_value: n, arg: out}}`, with the final contents of what was passed by address. ioctl(2)
    ioctl => Ioctl(fd: i32, request: IoctlRequest, argument: PtrArg);
    /// `{:ok, fd}`; the program does not inherit it. socket(2)
    socket => Socket(domain: Socket, kind: Socket, protocol: Socket);
    /// Connects a socket; the structure is the address. connect(2)
    connect => Connect(fd: i32, address: Cstruct);
    /// `{:ok, readable, writable, exceptional}`; no timeout waits for ever, and so does the task. select(2)
    select => Select(read: Vec<i32>, write: Vec<i32>, except: Vec<i32>, timeout: Timeout);

    /// `{:ok, fd}` that stands for a process; the program does not inherit it. pidfd_open(2), Linux 5.3
    pidfd_open => PidfdOpen(pid: i32);
    /// `{:ok, n}`: which version of Landlock the kernel has; `enosys` without it, `eopnotsupp` if it is off. landlock_create_ruleset(2), Linux 5.13
    landlock_abi => LandlockAbi();

    /// `{:ok, data, cstruct}`: what the kernel has left in the structure, as bytes and as it was given. procctl(2), FreeBSD
    procctl => Procctl(idtype: Procctl, id: u64, cmd: Procctl, data: Cstruct);
    /// `{:ok, jid}`: makes a jail and moves the task into it. jail(2), FreeBSD
    jail => Jail(jail: Jail);
    /// Moves the task into a jail. jail_attach(2), FreeBSD
    jail_attach => JailAttach(jid: i32);
    /// Ends a jail, and every process in it. jail_remove(2), FreeBSD
    jail_remove => JailRemove(jid: i32);
    /// From here on the task reaches nothing but by descriptors that it has. cap_enter(2), FreeBSD
    cap_enter => CapEnter();
    /// `{:ok, 1}` after `cap_enter`, else `{:ok, 0}`. cap_getmode(2), FreeBSD
    cap_getmode => CapGetmode();
    /// Restricts a descriptor to `:cap_read` and others. cap_rights_limit(2), FreeBSD
    cap_rights_limit => CapRightsLimit(fd: i32, rights: CapRights);
    /// Restricts the commands of fcntl(2) on a descriptor to `:cap_fcntl_getfl` and others. cap_fcntls_limit(2), FreeBSD
    cap_fcntls_limit => CapFcntlsLimit(fd: i32, rights: CapFcntls);
    /// `{:ok, rights}`: what `cap_fcntls_limit` has left. cap_fcntls_get(2), FreeBSD
    cap_fcntls_get => CapFcntlsGet(fd: i32);
    /// Restricts ioctl(2) on a descriptor to these requests. cap_ioctls_limit(2), FreeBSD
    cap_ioctls_limit => CapIoctlsLimit(fd: i32, cmds: Vec<IoctlRequest>);
    /// Promises what the task, and what the program, will do at most. pledge(2), OpenBSD
    pledge => Pledge(promises: Nullable, execpromises: Nullable);
    /// Hides all paths but those unveiled; nothing but `[]` twice: no more of them. unveil(2), OpenBSD
    unveil => Unveil(path: Nullable, perms: Nullable);
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
    fn the_last_arguments_of_some_may_be_left_out() {
        let open = |more: &[Value]| {
            let path = Value::Bytes(b"/".to_vec());
            Call::decode("open", [&[path, Value::Int(0)], more].concat())
        };
        let expected = |mode| {
            Ok(Call::Open {
                path: Path(b"/".to_vec().into()),
                flags: FileFlags::NONE,
                mode,
            })
        };
        assert_eq!(open(&[]), expected(0));
        assert_eq!(open(&[Value::Int(0o600)]), expected(0o600));
        assert_eq!(
            open(&[Value::Int(1), Value::Int(1)]),
            Err(BadArgument::Undefined)
        );
        let optional: Vec<_> = TABLE
            .iter()
            .filter(|row| row.optional > 0)
            .map(|row| (row.name, row.arguments.len()))
            .collect();
        assert_eq!(
            optional,
            [("setns", 2), ("mount", 6), ("open", 3), ("fcntl", 3)]
        );
    }

    #[test]
    fn calls_of_other_systems_are_undefined() {
        for absent in sys::ABSENT {
            let row = TABLE.iter().find(|row| row.name == *absent).unwrap();
            assert!(!row.is_here());
            let arguments = vec![Value::Int(0); row.arguments.len()];
            let decoded = Call::decode(absent, arguments);
            assert_eq!(decoded, Err(BadArgument::Undefined), "{absent}");
        }
        assert!(rows().count() > 60);
    }

    #[test]
    fn every_row_is_documented() {
        for row in TABLE {
            assert!(row.doc.trim().len() > 10, "{}", row.name);
        }
    }
}

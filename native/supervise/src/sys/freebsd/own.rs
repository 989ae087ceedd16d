//! Calls that FreeBSD alone has: procctl, jails, capsicum.

use std::ffi::{c_int, c_ulong};
use std::ptr;

use nix::errno::Errno;
use stdio_protocol::call::Call;
use stdio_protocol::value::{Cstruct, Value};

use super::control_raw;
use crate::call::{int, ok, ok_value, Context};
use crate::sys::Argument;

/// `ENOSYS`: it is another system's.
pub fn own(call: &Call, context: &Context) -> Result<Value, Errno> {
    match call {
        Call::Procctl {
            idtype,
            id,
            cmd,
            data,
        } => procctl(idtype.0, *id, cmd.0, data),
        Call::Jail { jail } => create(&jail.0),
        // SAFETY: takes a number only.
        Call::JailAttach { jid } => done(unsafe { libc::jail_attach(*jid) }),
        // SAFETY: takes a number only.
        Call::JailRemove { jid } => done(unsafe { libc::jail_remove(*jid) }),
        // SAFETY: takes nothing.
        Call::CapEnter {} => done(unsafe { libc::cap_enter() }),
        Call::CapGetmode {} => {
            let mut mode = 0;
            // SAFETY: the out-pointer is valid for the call.
            Errno::result(unsafe { libc::cap_getmode(&mut mode) })?;
            ok_value(int(mode))
        }
        Call::CapRightsLimit { fd, rights } => {
            let fd = context.own(*fd)?;
            // SAFETY: cap_rights_t is these two words (sys/capsicum.h); the kernel checks them.
            done(unsafe { libc::cap_rights_limit(fd, ptr::from_ref(&rights.0).cast()) })
        }
        Call::CapFcntlsLimit { fd, rights } => {
            let fd = context.own(*fd)?;
            // SAFETY: takes numbers only.
            done(unsafe { libc::cap_fcntls_limit(fd, rights.0) })
        }
        Call::CapFcntlsGet { fd } => {
            let fd = context.own(*fd)?;
            let mut rights = 0;
            // SAFETY: the out-pointer is valid for the call.
            Errno::result(unsafe { libc::cap_fcntls_get(fd, &mut rights) })?;
            ok_value(int(rights))
        }
        Call::CapIoctlsLimit { fd, cmds } => {
            let fd = context.own(*fd)?;
            let cmds: Vec<c_ulong> = cmds.iter().map(|request| request.0.into()).collect();
            // SAFETY: pointer and length describe `cmds`, which is only read.
            done(unsafe { libc::cap_ioctls_limit(fd, cmds.as_ptr(), cmds.len()) })
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn done(result: c_int) -> Result<Value, Errno> {
    Errno::result(result)?;
    ok()
}

/// procctl(2)
fn procctl(idtype: i32, id: u64, command: i32, data: &Cstruct) -> Result<Value, Errno> {
    let idtype = libc::idtype_t::try_from(idtype).map_err(|_| Errno::EINVAL)?;
    let id = libc::id_t::try_from(id).map_err(|_| Errno::EINVAL)?;
    let data = Argument::structure(data)?;
    let address = ptr::with_exposed_provenance_mut(data.word());
    // SAFETY: NULL, or memory that ends at a guard page and outlives the call.
    unsafe { control_raw(idtype, id, command, address) }?;
    let elements = match data.echo() {
        Value::List(elements) => elements,
        // NULL.
        _ => Vec::new(),
    };
    let bytes = elements.iter().flat_map(in_place).collect();
    Ok(Value::ok_with([Value::Bytes(bytes), Value::List(elements)]))
}

/// Pointers mean nothing to anybody else.
fn in_place(element: &Value) -> Vec<u8> {
    match element {
        Value::Bytes(bytes) => bytes.clone(),
        _ => vec![0; size_of::<usize>()],
    }
}

/// jail(2)
fn create(jail: &Cstruct) -> Result<Value, Errno> {
    let jail = Argument::structure(jail)?;
    let address = ptr::with_exposed_provenance_mut(jail.word());
    // SAFETY: memory that ends at a guard page and outlives the call; whatever it points to does too.
    let jid = Errno::result(unsafe { libc::jail(address) })?;
    ok_value(int(jid))
}

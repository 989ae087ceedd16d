//! Memory that a system call is given by address.
//!
//! 1. Each block ends at a page that nobody may touch: a kernel that writes more than the user
//!    made room for gets EFAULT, and the helper's own memory stays whole.
//! 2. A block is followed by at least one zero byte, so a binary without one is a C string.
//! 3. A number passed where the kernel wants an address is the user's own doing: such a task has
//!    no privilege but the user's, and its ruin is seen as its end.

use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};

use nix::errno::Errno;
use stdio_protocol::value::{Cstruct, Element, PtrArg, Value};

/// An argument of one system call.
pub enum Argument {
    Number(Number),
    Memory(Memory),
}

#[derive(Clone, Copy)]
pub enum Number {
    Signed(i64),
    Unsigned(u64),
}

impl Argument {
    pub fn new(argument: &PtrArg) -> Result<Self, Errno> {
        match argument {
            PtrArg::Signed(number) => Ok(Self::Number(Number::Signed(*number))),
            PtrArg::Unsigned(number) => Ok(Self::Number(Number::Unsigned(*number))),
            PtrArg::Bytes(bytes) => Memory::binary(bytes).map(Self::Memory),
            PtrArg::Cstruct(cstruct) => Self::structure(cstruct),
        }
    }

    /// An empty structure is NULL.
    pub fn structure(cstruct: &Cstruct) -> Result<Self, Errno> {
        match cstruct.0.as_slice() {
            [] => Ok(Self::Number(Number::Signed(0))),
            _ => Memory::structure(cstruct).map(Self::Memory),
        }
    }

    /// As a register holds it.
    pub fn word(&self) -> usize {
        match self {
            // The low half on a 32-bit machine, as C's conversion to long takes it.
            Self::Number(Number::Signed(number)) => truncate(number.cast_unsigned()),
            Self::Number(Number::Unsigned(number)) => truncate(*number),
            Self::Memory(memory) => memory.address(memory.structure),
        }
    }

    /// What stands in place, without what is pointed to.
    pub fn size(&self) -> usize {
        match self {
            Self::Number(_) => 0,
            Self::Memory(memory) => memory.structure.size,
        }
    }

    /// In the shape in which it was given, with what the kernel has left in it. No call of OpenBSD's
    /// gives it back.
    #[cfg(not(target_os = "openbsd"))]
    pub fn echo(&self) -> Value {
        match self {
            Self::Number(Number::Signed(number)) => Value::Int((*number).into()),
            Self::Number(Number::Unsigned(number)) => Value::Int((*number).into()),
            Self::Memory(memory) => memory.echo(),
        }
    }

    /// As `echo`, but a number comes back as no bytes.
    pub fn contents(&self) -> Value {
        match self {
            Self::Number(_) => Value::Bytes(Vec::new()),
            Self::Memory(memory) => memory.echo(),
        }
    }
}

fn truncate(number: u64) -> usize {
    #[allow(clippy::cast_possible_truncation)]
    let word = number as usize;
    word
}

/// A place in the mapping.
#[derive(Clone, Copy)]
struct Block {
    offset: usize,
    size: usize,
}

enum Slot {
    Bytes {
        size: usize,
    },
    Pointer(Block),
    /// `{:ptr, 0}` and `{:ptr, ""}`.
    NullZeros,
    NullBytes,
}

/// One mapping with the structure and everything that it points to.
pub struct Memory {
    base: NonNull<c_void>,
    length: usize,
    structure: Block,
    /// `None` for a plain binary.
    slots: Option<Vec<Slot>>,
}

impl Memory {
    fn binary(bytes: &[u8]) -> Result<Self, Errno> {
        let mut plan = Plan::new()?;
        let structure = plan.block(bytes.len())?;
        let mut memory = plan.map(structure)?;
        memory.write(structure.offset, bytes);
        Ok(memory)
    }

    fn structure(cstruct: &Cstruct) -> Result<Self, Errno> {
        if !cstruct.is_within_limits() {
            return Err(Errno::EINVAL);
        }
        let mut plan = Plan::new()?;
        let mut slots = Vec::with_capacity(cstruct.0.len());
        for element in &cstruct.0 {
            slots.push(match element {
                Element::Bytes(bytes) => Slot::Bytes { size: bytes.len() },
                Element::Zeros(0) => Slot::NullZeros,
                Element::Zeros(count) => {
                    let count = usize::try_from(*count).map_err(|_| Errno::EINVAL)?;
                    Slot::Pointer(plan.block(count)?)
                }
                Element::Pointer(bytes) if bytes.is_empty() => Slot::NullBytes,
                Element::Pointer(bytes) => Slot::Pointer(plan.block(bytes.len())?),
            });
        }
        let structure = plan.block(slots.iter().map(Slot::size).sum())?;
        let mut memory = plan.map(structure)?;

        let mut offset = structure.offset;
        for (element, slot) in cstruct.0.iter().zip(&slots) {
            match (slot, element) {
                (Slot::Bytes { .. }, Element::Bytes(bytes)) => memory.write(offset, bytes),
                (Slot::Pointer(block), element) => {
                    let address = memory.address(*block);
                    memory.write(offset, &address.to_ne_bytes());
                    if let Element::Pointer(bytes) = element {
                        memory.write(block.offset, bytes);
                    }
                }
                // Zero, as the mapping is.
                _ => {}
            }
            offset += slot.size();
        }
        memory.slots = Some(slots);
        Ok(memory)
    }

    fn address(&self, block: Block) -> usize {
        self.base.as_ptr().expose_provenance() + block.offset
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: the destination is inside the mapping (asserted), which this value alone owns;
        // what is before a block's end is readable and writable (`Plan::map`).
        unsafe {
            let place = self.base.as_ptr().cast::<u8>().add(offset);
            ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
        }
    }

    fn read(&self, offset: usize, size: usize) -> Vec<u8> {
        assert!(offset + size <= self.length);
        let mut bytes = vec![0; size];
        // SAFETY: as in `write`; the system call that wrote here has returned.
        unsafe {
            let place = self.base.as_ptr().cast::<u8>().add(offset);
            ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), size);
        }
        bytes
    }

    fn echo(&self) -> Value {
        let Some(slots) = &self.slots else {
            return Value::Bytes(self.read(self.structure.offset, self.structure.size));
        };
        let pointer = |value| Value::Tuple(vec![Value::atom("ptr"), value]);
        let mut offset = self.structure.offset;
        let elements = slots.iter().map(|slot| {
            let place = offset;
            offset += slot.size();
            match slot {
                Slot::Bytes { size } => Value::Bytes(self.read(place, *size)),
                Slot::Pointer(block) => pointer(Value::Bytes(self.read(block.offset, block.size))),
                Slot::NullZeros => pointer(Value::Int(0)),
                Slot::NullBytes => pointer(Value::Bytes(Vec::new())),
            }
        });
        Value::List(elements.collect())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `base` and `length` are those of `Plan::map`, and no reference into it exists.
        unsafe { libc::munmap(self.base.as_ptr(), self.length) };
    }
}

impl Slot {
    fn size(&self) -> usize {
        match self {
            Self::Bytes { size } => *size,
            _ => size_of::<usize>(),
        }
    }
}

/// The lay-out of a mapping that is yet to be made.
struct Plan {
    page: usize,
    length: usize,
    /// Where the pages are that nobody may touch.
    guards: Vec<usize>,
}

impl Plan {
    fn new() -> Result<Self, Errno> {
        // SAFETY: takes a number only.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| Errno::EINVAL)?;
        Ok(Self {
            page,
            length: 0,
            guards: Vec::new(),
        })
    }

    /// As near to the end of its pages as alignment and a zero byte allow, then the guard page.
    fn block(&mut self, size: usize) -> Result<Block, Errno> {
        let room = size
            .checked_add(1)
            .and_then(|size| size.checked_next_multiple_of(align_of::<u64>()))
            .ok_or(Errno::ENOMEM)?;
        let end = self
            .length
            .checked_add(room)
            .and_then(|end| end.checked_next_multiple_of(self.page))
            .ok_or(Errno::ENOMEM)?;
        self.length = end.checked_add(self.page).ok_or(Errno::ENOMEM)?;
        self.guards.push(end);
        Ok(Block {
            offset: end - room,
            size,
        })
    }

    fn map(self, structure: Block) -> Result<Memory, Errno> {
        // SAFETY: a new private mapping, wherever the kernel finds room.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                self.length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let memory = Memory {
            base: NonNull::new(base).ok_or(Errno::ENOMEM)?,
            length: self.length,
            structure,
            slots: None,
        };
        for guard in self.guards {
            // SAFETY: `block` put every guard inside the mapping and no block into a guard.
            let result: c_int = unsafe {
                let place = memory.base.as_ptr().byte_add(guard);
                libc::mprotect(place, self.page, libc::PROT_NONE)
            };
            Errno::result(result)?;
        }
        Ok(memory)
    }
}

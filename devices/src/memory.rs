//! Guest RAM as devices see it.

use std::sync::atomic::{AtomicU16, Ordering};

use vm_memory::{
    ByteValued, Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _,
    MemoryRegionAddress, VolatileMemory as _, VolatileSlice,
};

/// Guest RAM: shared with the guest's CPUs, so its contents may change at any moment.
pub type GuestMem = vm_memory::GuestMemoryMmap<()>;

/// Some of it does not lie in RAM.
#[derive(Debug)]
pub(crate) struct NotRam;

// What a queue does with each request. The general way of vm-memory goes through an iterator over the mappings that a value may be
// spread over, and takes several times as long; nearly always there is one.

/// What lies at `address`; `None` unless all of it lies in one mapping. Most lies in the first one: no search finds it.
pub(crate) fn slice(mem: &GuestMem, address: u64, bytes: usize) -> Option<VolatileSlice<'_>> {
    let first = mem.iter().next()?;
    let offset = address.checked_sub(first.start_addr().0);
    if let Some(offset) = offset.filter(|offset| *offset < first.len()) {
        return first.get_slice(MemoryRegionAddress(offset), bytes).ok();
    }
    mem.get_slice(GuestAddress(address), bytes).ok()
}

/// Reads `T` at `address` once.
///
/// # Errors
/// [`NotRam`].
pub(crate) fn read<T: ByteValued>(mem: &GuestMem, address: u64) -> Result<T, NotRam> {
    if let Some(slice) = slice(mem, address, size_of::<T>())
        && let Ok(place) = slice.get_ref(0)
    {
        return Ok(place.load());
    }
    mem.read_obj(GuestAddress(address)).map_err(|_| NotRam)
}

/// Writes `value` to `address`.
///
/// # Errors
/// [`NotRam`].
pub(crate) fn write<T: ByteValued>(mem: &GuestMem, address: u64, value: T) -> Result<(), NotRam> {
    if let Some(slice) = slice(mem, address, size_of::<T>())
        && let Ok(place) = slice.get_ref(0)
    {
        place.store(value);
        return Ok(());
    }
    mem.write_obj(value, GuestAddress(address))
        .map_err(|_| NotRam)
}

/// Fills `target` from `address` on.
///
/// # Errors
/// [`NotRam`]; `target` is then undefined.
pub(crate) fn read_bytes(mem: &GuestMem, address: u64, target: &mut [u8]) -> Result<(), NotRam> {
    if let Some(slice) = slice(mem, address, target.len()) {
        slice.copy_to(target);
        return Ok(());
    }
    mem.read_slice(target, GuestAddress(address))
        .map_err(|_| NotRam)
}

/// Puts `source` to `address` and on.
///
/// # Errors
/// [`NotRam`]; a part may then have been written.
pub(crate) fn write_bytes(mem: &GuestMem, address: u64, source: &[u8]) -> Result<(), NotRam> {
    if let Some(slice) = slice(mem, address, source.len()) {
        slice.copy_from(source);
        return Ok(());
    }
    mem.write_slice(source, GuestAddress(address))
        .map_err(|_| NotRam)
}

/// Loads a little-endian 16-bit field, of which the driver writes nothing but the whole.
///
/// # Errors
/// [`NotRam`]: also where it is not aligned.
pub(crate) fn load(mem: &GuestMem, address: u64, ordering: Ordering) -> Result<u16, NotRam> {
    with_word(mem, address, |word| u16::from_le(word.load(ordering)))
}

/// Stores a little-endian 16-bit field, of which the driver sees nothing but the whole.
///
/// # Errors
/// [`NotRam`]: also where it is not aligned.
pub(crate) fn store(
    mem: &GuestMem,
    address: u64,
    value: u16,
    ordering: Ordering,
) -> Result<(), NotRam> {
    with_word(mem, address, |word| word.store(value.to_le(), ordering))
}

fn with_word<T>(
    mem: &GuestMem,
    address: u64,
    access: impl FnOnce(&AtomicU16) -> T,
) -> Result<T, NotRam> {
    let slice = slice(mem, address, size_of::<u16>()).ok_or(NotRam)?;
    slice.get_atomic_ref(0).map(access).map_err(|_| NotRam)
}

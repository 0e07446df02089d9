//! Loads and stores that reach a device, or memory that someone else writes. All addresses are identity-mapped.

/// A window of device registers or of a table in guest memory, at a fixed physical address.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: usize,
    len: usize,
}

impl Window {
    /// # Safety
    /// `base..base + len` must be mapped for the life of the guest and be no Rust object.
    pub const unsafe fn new(base: usize, len: usize) -> Self {
        Self { base, len }
    }

    /// Guest-physical address of `offset`, for a device to know.
    #[cfg(feature = "raw")]
    pub const fn address(self, offset: usize) -> u64 {
        (self.base + offset) as u64
    }

    /// Reads a `T` at `offset`, which is aligned for it.
    /// # Panics
    /// If it does not lie in the window.
    pub fn read<T: Copy>(self, offset: usize) -> T {
        let place: *mut T = self.place(offset);
        // SAFETY: `place` checked bounds and alignment; the window is mapped (new); T is plain data at every call.
        unsafe { place.read_volatile() }
    }

    /// Writes `value` at `offset`, which is aligned for it.
    /// # Panics
    /// If it does not lie in the window.
    pub fn write<T: Copy>(self, offset: usize, value: T) {
        let place: *mut T = self.place(offset);
        // SAFETY: as for read.
        unsafe { place.write_volatile(value) };
    }

    /// The bytes `offset..offset + len`, if they lie in the window. Only for memory nobody writes to meanwhile.
    pub fn bytes(self, offset: usize, len: usize) -> Option<&'static [u8]> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: in bounds; mapped for ever and no Rust object (new).
        Some(unsafe { core::slice::from_raw_parts((self.base + offset) as *const u8, len) })
    }

    fn place<T>(self, offset: usize) -> *mut T {
        let address = self.base + offset;
        assert!(offset + size_of::<T>() <= self.len && address.is_multiple_of(align_of::<T>()));
        address as *mut T
    }
}

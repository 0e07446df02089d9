//! Guest RAM as devices see it.

/// Guest RAM: shared with the guest's CPUs, so its contents may change at any moment.
pub type GuestMem = vm_memory::GuestMemoryMmap<()>;

//! Everything that the compiler cannot prove: one operation a block.

pub mod control_page;
pub mod counter;
pub mod process;
pub mod ptrace;
pub mod random;
pub mod signals;
pub mod socket;

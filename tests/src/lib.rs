//! End-to-end tests of LightV: `lightv` and `lightv-vmm` as their users have them, with real guests.
//!
//! The tests are in `tests/`, one file a subject; here is what they have in common. A test owns a [`scratch::Scratch`]
//! folder, in which everything that it starts works, and network name spaces ([`netns::Netns`]) with the names of its
//! taps to itself. So tests run beside each other, and what one leaves behind is seen. Time decides nothing: whatever
//! is waited for has [`process::DEADLINE`], which only ends what hangs.

pub mod agent;
pub mod api;
pub mod cgroups;
pub mod cpu_guest;
pub mod dirty;
pub mod disk;
pub mod events;
pub mod host;
pub mod http;
pub mod jails;
pub mod linux;
pub mod machine;
pub mod netns;
pub mod picture;
pub mod process;
pub mod prometheus;
pub mod pty;
pub mod rootfs;
pub mod scratch;
pub mod strace;
pub mod trial;
pub mod unprivileged;
pub mod usage;

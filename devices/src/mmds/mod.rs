//! The metadata service (MMDS): a guest asks an address of its network for what the operator has put into a store.
//!
//! Frames to the address are taken out of what a network card sends, and are answered here: they never reach the tap.
//! TCP is smoltcp's; this module has what goes over it, and the limits of it all. Protocol, words and status codes are
//! Firecracker's.
//!
//! ```text
//!   card --> detour (which frames) --> stack (TCP) --> connection --> http (a request) --> answer --> store, token
//!   card <-- frames that wait <------- link <-------------- bytes of the answer
//! ```

mod answer;
mod arp;
mod connection;
mod counters;
mod detour;
mod http;
mod link;
mod service;
mod stack;
mod store;
mod token;

pub use self::counters::MmdsCounts;
pub(crate) use self::detour::{Detour, PEEK_BYTES, TakenFrame};
pub use self::service::{DEFAULT_ADDRESS, Mmds, MmdsOptions, Version};

//! What the guest reads as text: command line, addresses, HTTP requests. Pure functions, tested on the host.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod args;
pub mod cmdline;
pub mod http;
pub mod ip;

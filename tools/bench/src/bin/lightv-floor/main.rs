//! `lightv-floor`: the least that a restored microVM costs on this host, as a program of its own.
//!
//! Only what no monitor can leave out: a process, the bare KVM calls in the best order (VM, memory slots, interrupt
//! controller, vCPU, CPUID, registers), a private mapping of a file, a guest at CPL 3 that touches as many pages as
//! the real one does, one exit, one byte on standard output.
//!
//! ```text
//! lightv-floor --prepare FILE READ WRITTEN    write the guest memory of a floor with so many pages
//! lightv-floor FILE                           run it
//! ```

#![deny(unsafe_code)]

mod guest;
mod machine;
#[allow(unsafe_code)]
mod sys;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "Usage: lightv-floor FILE | lightv-floor --prepare FILE READ WRITTEN";

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let result = match args.as_slice() {
        [file] if !file.as_encoded_bytes().starts_with(b"-") => machine::run(file.as_ref()),
        [flag, file, read, written] if flag == "--prepare" => {
            match (number(read), number(written)) {
                (Some(read), Some(written)) => machine::prepare(file.as_ref(), read, written),
                _ => return usage(),
            }
        }
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lightv-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &OsString) -> Option<u32> {
    text.to_str()?
        .parse()
        .ok()
        .filter(|pages| *pages <= guest::PAGES_MAX)
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(lightv_api::exit::BAD_ARGUMENTS)
}

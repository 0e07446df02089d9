//! `--inspect-pid`: memory, threads and open files of a running VM, as the kernel sees them.

use std::fs;
use std::io;
use std::path::PathBuf;

use lightv_api::describe::{ProcessDescription, ProcessDetails};

use crate::metrics::kib_of;

/// Why a process could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Not there, or not ours.
    #[error("Cannot read {}; is {pid} a running process of yours?", path.display())]
    Read {
        /// Which process.
        pid: u32,
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// Another program.
    #[error("Process {pid} is `{name}`, not lightv-vmm")]
    NotAVm {
        /// Which process.
        pid: u32,
        /// Its name.
        name: String,
    },
}

impl InspectError {
    /// Whether somebody else may see it.
    fn is_denied(&self) -> bool {
        matches!(self, Self::Read { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Looks at process `pid`. Who is not root sees less of it.
///
/// # Errors
/// [`InspectError`].
pub fn inspect(pid: u32) -> Result<ProcessDescription, InspectError> {
    let read = |name: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        fs::read_to_string(&path).map_err(|cause| InspectError::Read { pid, path, cause })
    };
    let name = read("comm")?.trim_end().to_owned();
    if name != "lightv-vmm" {
        return Err(InspectError::NotAVm { pid, name });
    }
    let list = |name: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        let entries =
            fs::read_dir(&path).map_err(|cause| InspectError::Read { pid, path, cause })?;
        Ok(entries
            .flatten()
            .map(|entry| entry.path())
            .collect::<Vec<_>>())
    };
    let threads = list("task")?
        .into_iter()
        .filter_map(|path| fs::read_to_string(path.join("comm")).ok());
    let threads = threads.map(|name| name.trim_end().to_owned()).collect();
    let details = match (read("smaps"), list("fd")) {
        (Ok(smaps), Ok(files)) => {
            let memory = sum_mappings(&smaps);
            let files = files
                .into_iter()
                .filter_map(|path| fs::read_link(path).ok());
            Some(ProcessDetails {
                own_pss_kib: memory.own_pss_kib,
                guest_pss_kib: memory.guest_pss_kib,
                guest_private_kib: memory.guest_private_kib,
                open_files: files.map(|path| path.display().to_string()).collect(),
            })
        }
        (Err(error), _) | (_, Err(error)) if !error.is_denied() => return Err(error),
        _ => None,
    };
    Ok(ProcessDescription {
        pid,
        // Everybody can read it.
        resident_kib: kib_of(&read("status")?, "VmRSS:").unwrap_or(0),
        threads,
        details,
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    own_pss_kib: u64,
    guest_pss_kib: u64,
    guest_private_kib: u64,
}

/// Sums up `/proc/PID/smaps` (Documentation/filesystems/proc.rst). Guest RAM is what is kept out of core dumps (`dd`)
/// and belongs to no driver: see `GuestRam::exclude_from_core_dumps`.
fn sum_mappings(smaps: &str) -> Memory {
    let mut memory = Memory::default();
    let (mut pss, mut private, mut is_special) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let kib = || second.parse::<u64>().unwrap_or(0);
        match first {
            "Pss:" => pss = kib(),
            "Private_Dirty:" => private = kib(),
            // The last line of a mapping.
            "VmFlags:" if !is_special && line.split_whitespace().any(|flag| flag == "dd") => {
                memory.guest_pss_kib += pss;
                memory.guest_private_kib += private;
            }
            "VmFlags:" => memory.own_pss_kib += pss,
            // The first line of a mapping: `start-end flags offset device inode path`.
            range if range.contains('-') && !range.ends_with(':') => {
                let path = line.split_whitespace().nth(5).unwrap_or_default();
                is_special = path.starts_with('[') || path.starts_with("anon_inode:");
            }
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_from_the_monitors_own_memory() {
        let smaps = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \n\
Pss:                 100 kB\nPrivate_Dirty:        90 kB\nVmFlags: rd wr mr mw me nr dd \n\
7f0008000000-7f0008100000 rw-p 00001000 fe:00 77 /tmp/a.lv\n\
Pss:                  20 kB\nPrivate_Dirty:         4 kB\nVmFlags: rd wr dd \n\
55d000000000-55d000100000 r-xp 00000000 fe:00 78 /usr/bin/lightv-vmm\n\
Pss:                   7 kB\nPrivate_Dirty:         1 kB\nVmFlags: rd ex \n\
7f0009000000-7f0009003000 rw-s 00000000 00:0e 9 anon_inode:kvm-vcpu:0\n\
Pss:                   3 kB\nPrivate_Dirty:         0 kB\nVmFlags: rd wr sh dd \n";
        let expected = Memory {
            own_pss_kib: 10,
            guest_pss_kib: 120,
            guest_private_kib: 94,
        };
        assert_eq!(sum_mappings(smaps), expected);
    }

    #[test]
    fn a_process_that_is_none_or_another_program_is_refused() {
        assert!(matches!(inspect(u32::MAX), Err(InspectError::Read { .. })));
        assert!(matches!(
            inspect(std::process::id()),
            Err(InspectError::NotAVm { .. })
        ));
    }
}

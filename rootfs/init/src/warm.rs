//! Everything that a waiting program has mapped is brought into memory and into its page tables before the machine is
//! saved: a start then takes no page fault of the guest for it, and reads no disk.
//!
//! Where a guest's kernel is emulated, each fault takes 0.3 ms or more, and a shell's first words cost a hundred.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Most that is brought in for one program: it becomes part of the image.
pub const BYTES_MAX: u64 = 24 << 20;
/// How much is read at a time.
const CHUNK_BYTES: usize = 64 << 10;
const PAGE_BYTES: u64 = 4096;

/// A stretch of a program's address space, as a line of `/proc/PID/maps` has it (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First byte.
    pub start: u64,
    /// After the last.
    pub end: u64,
    /// Whether the program may write there, to pages of its own.
    pub is_written: bool,
}

/// The stretches of `maps` that are worth it, those with code first: what the program can read, but for what the kernel
/// itself puts there.
#[must_use]
pub fn areas(maps: &str) -> Vec<Area> {
    let (code, rest): (Vec<_>, Vec<_>) = maps.lines().filter_map(area).partition(|(_, x)| *x);
    let both = code.into_iter().chain(rest);
    both.map(|(area, _)| area).collect()
}

fn area(line: &str) -> Option<(Area, bool)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?.as_bytes();
    let name = words.nth(3).unwrap_or_default();
    if matches!(name, "[vdso]" | "[vvar]" | "[vsyscall]") {
        return None;
    }
    let &[b'r', write, run, b'p'] = rights else {
        return None;
    };
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let area = Area {
        start: number(start)?,
        end: number(end)?,
        is_written: write == b'w',
    };
    Some((area, run == b'x'))
}

/// Touches every page of `areas` through `memory`, the `/proc/PID/mem` of a stopped program, up to [`BYTES_MAX`]. Of those
/// that may be written each gets a copy of its own: the same byte is written back. A page that cannot be touched is left
/// out: a mapping may be longer than its file.
pub fn touch(memory: &File, areas: &[Area]) {
    let mut left = BYTES_MAX;
    let mut chunk = vec![0; CHUNK_BYTES];
    for area in areas {
        let end = area.end.min(area.start.saturating_add(left));
        left = left.saturating_sub(area.end.saturating_sub(area.start));
        if area.is_written {
            write_back(memory, area.start, end);
        } else {
            // Twice, so that the kernel counts its pages among those in use: it would when the program ends, page by page,
            // and that is half of the program's end where the kernel is emulated.
            read(memory, area.start, end, &mut chunk);
            read(memory, area.start, end, &mut chunk);
        }
    }
}

fn read(memory: &File, start: u64, end: u64, chunk: &mut [u8]) {
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).map_or(chunk.len(), |rest| rest.min(chunk.len()));
        let part = chunk.get_mut(..length).unwrap_or_default();
        let done = memory.read_at(part, at).unwrap_or(0);
        at += (done as u64).max(PAGE_BYTES);
    }
}

fn write_back(memory: &File, start: u64, end: u64) {
    let mut at = start;
    while at < end {
        let mut byte = [0];
        if memory.read_exact_at(&mut byte, at).is_ok() {
            let _ = memory.write_all_at(&byte, at);
        }
        at += PAGE_BYTES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
00400000-00401000 r--p 00000000 fe:00 12    /bin/busybox
00401000-00560000 r-xp 00001000 fe:00 12    /bin/busybox
005a0000-005b0000 rw-p 0019f000 fe:00 12    /bin/busybox
005b0000-005b1000 ---p 00000000 00:00 0
7f0000000000-7f0000001000 rw-s 00000000 00:01 3 /dev/shm/x
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0    [stack]
7ffc00100000-7ffc00104000 r--p 00000000 00:00 0    [vvar]
7ffc00104000-7ffc00106000 r-xp 00000000 00:00 0    [vdso]
not a line
";

    #[test]
    fn code_comes_first_and_the_kernels_own_pages_stay() {
        let area = |start, end, is_written| Area {
            start,
            end,
            is_written,
        };
        let expected = [
            area(0x40_1000, 0x56_0000, false),
            area(0x40_0000, 0x40_1000, false),
            area(0x5a_0000, 0x5b_0000, true),
            area(0x7ffc_0000_0000, 0x7ffc_0002_1000, true),
        ];
        assert_eq!(areas(MAPS), expected);
    }

    #[test]
    fn a_process_can_be_touched_and_stays_what_it_is() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let memory = File::open("/proc/self/mem").unwrap();
        // Read only: this process is not stopped.
        let read_only: Vec<Area> = areas(&maps)
            .into_iter()
            .filter(|area| !area.is_written)
            .collect();
        assert!(!read_only.is_empty());
        touch(&memory, &read_only);
    }
}

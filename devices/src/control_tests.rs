use proptest::prelude::*;
use vm_memory::VolatileMemory;

use super::*;

fn run(args: &[&str], env: &[(&str, &str)]) -> RunData {
    RunData {
        restores: 3,
        generation: *b"0123456789abcdef",
        seed: [7; 32],
        wall_clock_ns: 0x1122_3344_5566_7788,
        wall_clock_tsc: 99,
        tsc_khz: 2_400_000,
        vcpus: 2,
        ram_bytes: 128 << 20,
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: env
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        flags: 0,
        agent: String::new(),
    }
}

fn published(run: &RunData) -> Result<Vec<u8>, ControlPageError> {
    let mut page = vec![0_u8; CONTROL_BYTES];
    let slice = VolatileSlice::from(page.as_mut_slice());
    ControlPage::new(slice).publish(run)?;
    Ok(page)
}

fn word(page: &[u8], offset: usize) -> usize {
    u32::from_le_bytes(page[offset..offset + 4].try_into().unwrap()) as usize
}

#[test]
fn a_short_run_stands_in_the_first_page() {
    let page = published(&run(&["echo", "ä", ""], &[("HOME", "/")])).unwrap();
    assert_eq!(&page[0..4], b"LVCT");
    assert_eq!(word(&page, 4), 1);
    assert_eq!(&page[0x10..0x20], b"0123456789abcdef");
    assert_eq!(&page[0x20..0x40], &[7; 32]);
    assert_eq!(page[0x40..0x48], 0x1122_3344_5566_7788_u64.to_le_bytes());
    assert_eq!(page[0x48], 99);
    assert_eq!(
        (word(&page, 0x50), word(&page, 0x54), word(&page, 0x58)),
        (2_400_000, 2, 128 << 20)
    );
    assert_eq!(
        [0x60, 0x64, 0x68].map(|offset| word(&page, offset)),
        [0x100, 9, 3]
    );
    assert_eq!(
        [0x6c, 0x70, 0x74].map(|offset| word(&page, offset)),
        [0x109, 7, 1]
    );
    assert_eq!(&page[0x100..0x110], "echo\0ä\0\0HOME=/\0".as_bytes());
    assert_eq!(
        [0x78, 0x7c, 0x80].map(|offset| word(&page, offset)),
        [0, 0x110, 0]
    );
    assert!(page[0x110..].iter().all(|&byte| byte == 0));
}

#[test]
fn the_agents_orders_follow_the_environment() {
    let mut run = run(&["a"], &[("B", "c")]);
    run.flags = FLAG_TTY;
    run.agent = r#"{"hostname":"h"}"#.into();
    let page = published(&run).unwrap();
    assert_eq!(
        [0x78, 0x7c, 0x80].map(|offset| word(&page, offset)),
        [1, 0x106, 16]
    );
    assert_eq!(&page[0x100..0x116], b"a\0B=c\0{\"hostname\":\"h\"}");
    let (len, max) = (CONTROL_STRINGS_BYTES_MAX, CONTROL_STRINGS_BYTES_MAX);
    run.agent = "x".repeat(len - 5);
    let bytes = len + 1;
    assert_eq!(
        published(&run),
        Err(ControlPageError::TooLong { bytes, max })
    );
}

#[test]
fn strings_move_behind_the_doorbells_when_they_do_not_fit_before_them() {
    for (length, start) in [(0x6ff, 0x100), (0x700, 0x1000)] {
        let argument = "x".repeat(length);
        let page = published(&run(&[&argument], &[])).unwrap();
        assert_eq!(word(&page, 0x60), start, "{length:#x}");
        assert!(
            page[0x800..0x1000].iter().all(|&byte| byte == 0),
            "{length:#x}"
        );
    }
}

#[test]
fn the_longest_strings_fit_and_one_byte_more_is_refused() {
    let argument = "x".repeat(CONTROL_STRINGS_BYTES_MAX - 1);
    let page = published(&run(&[&argument], &[])).unwrap();
    assert_eq!(page[CONTROL_BYTES - 2..], *b"x\0");
    let found = published(&run(&[&argument, ""], &[]));
    assert_eq!(
        found,
        Err(ControlPageError::TooLong {
            bytes: 61_441,
            max: 61_440
        })
    );
}

#[test]
fn strings_that_could_not_be_read_back_are_refused_by_name() {
    let found = published(&run(&["a", "b\0c"], &[]));
    assert_eq!(found, Err(ControlPageError::NulInArgument { index: 1 }));
    let found = published(&run(&[], &[("A", "\0")]));
    assert_eq!(
        found,
        Err(ControlPageError::NulInVariable { name: "A".into() })
    );
    for name in ["", "A=B"] {
        let found = published(&run(&[], &[(name, "")]));
        assert_eq!(
            found,
            Err(ControlPageError::VariableName { name: name.into() })
        );
    }
}

#[test]
fn a_page_of_another_size_is_refused() {
    let mut page = vec![0_u8; 0x1000];
    let slice = VolatileSlice::from(page.as_mut_slice());
    let found = ControlPage::new(slice.get_slice(0, 0x1000).unwrap()).publish(&run(&[], &[]));
    assert_eq!(found, Err(ControlPageError::PageSize { bytes: 0x1000 }));
}

#[test]
fn doorbells_have_one_width_each() {
    let ring = |offset: u64, bytes: &[u8]| Doorbell::decode(offset, bytes);
    let four = [0x34, 0x12, 0, 0];
    assert_eq!(ring(0x800, &four), Some(Doorbell::Ready));
    assert_eq!(ring(0x818, &four), Some(Doorbell::Exit(0x34)));
    assert_eq!(ring(0x820, &four), Some(Doorbell::Mark(0x1234)));
    assert_eq!(ring(0x828, &four), Some(Doorbell::Clock));
    assert_eq!(ring(0x830, &four), Some(Doorbell::Panic));
    let eight = [1, 2, 3, 4, 5, 6, 0xff, 0xff];
    let print = |stream| {
        Some(Doorbell::Print {
            stream,
            addr: 0x0605_0403_0201,
            len: 65_535,
        })
    };
    assert_eq!(ring(0x808, &eight), print(OutputStream::Stdout));
    assert_eq!(ring(0x810, &eight), print(OutputStream::Stderr));
    for offset in 0..0x10000 {
        for width in [0, 1, 2, 3, 4, 8, 16] {
            let is_print = offset == 0x808 || offset == 0x810;
            let is_word = [0x800, 0x818, 0x820, 0x828, 0x830].contains(&offset);
            let is_doorbell = (is_print && width == 8) || (is_word && width == 4);
            let found = ring(offset, &[0; 16][..width]);
            assert_eq!(found.is_some(), is_doorbell, "{offset:#x} {width}");
        }
    }
}

#[test]
fn a_print_buffer_across_the_end_of_ram_is_refused() {
    let mem = GuestMem::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
    mem.write_slice(b"hello", GuestAddress(0x1ffb)).unwrap();
    let mut buffer = Vec::new();
    assert_eq!(
        copy_print_buffer(&mem, 0x1ffb, 5, &mut buffer),
        Ok(&b"hello"[..])
    );
    assert_eq!(
        copy_print_buffer(&mem, 0x1ffb, 0, &mut buffer),
        Ok(&b""[..])
    );
    for (addr, len) in [
        (0x1ffb, 6),
        (0x2000, 1),
        (0xffff_ffff_ffff, 65_535),
        (0, 65_536),
    ] {
        let fault = GuestFault::OutOfRam {
            address: addr,
            bytes: u64::from(len),
        };
        assert_eq!(copy_print_buffer(&mem, addr, len, &mut buffer), Err(fault));
    }
    assert!(buffer.capacity() <= 2 * PRINT_BYTES_MAX);
}

proptest! {
    #[test]
    fn what_is_published_is_read_back(
        args in proptest::collection::vec("[^\0]{0,40}", 0..20),
        env in proptest::collection::vec(("[A-Z_]{1,10}", "[^\0]{0,40}"), 0..20),
    ) {
        let data = RunData { args: args.clone(), env: env.clone(), ..RunData::default() };
        let page = published(&data).unwrap();
        let list = |at: usize| -> Vec<String> {
            let (start, bytes, count) = (word(&page, at), word(&page, at + 4), word(&page, at + 8));
            let text = std::str::from_utf8(&page[start..start + bytes]).unwrap();
            let list: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
            assert_eq!(list.len(), count);
            list
        };
        prop_assert_eq!(list(0x60), args);
        let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        prop_assert_eq!(list(0x6c), env);
    }
}

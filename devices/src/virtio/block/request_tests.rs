use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::test_support::{HIGH_RAM, LOW_RAM, guest_mem};
use crate::virtio::chain::Segment;

const SECTORS: u64 = 8;
const DISK_BYTES: usize = 4096;

fn disk(read_only: bool) -> Disk {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[0; DISK_BYTES]).unwrap();
    Disk::open(file.path(), read_only).unwrap()
}

/// A chain of readable buffers with these lengths, filled with `header`, and writable ones.
fn chain(mem: &GuestMem, header: &[u8], readable: &[u32], writable: &[u32]) -> Chain {
    let mut chain = Chain::default();
    let mut address = 0x1_0000;
    let mut rest = header;
    for &bytes in readable {
        let (now, later) = rest.split_at(rest.len().min(bytes as usize));
        mem.write_slice(now, GuestAddress(address)).unwrap();
        rest = later;
        chain.push(Segment { address, bytes }, false).unwrap();
        address += 0x1_0000;
    }
    for &bytes in writable {
        chain.push(Segment { address, bytes }, true).unwrap();
        address += 0x1_0000;
    }
    chain
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0xff; 4], &sector.to_le_bytes()].concat()
}

fn parse(
    kind: u32,
    sector: u64,
    readable: &[u32],
    writable: &[u32],
) -> Result<Request, GuestFault> {
    let mem = guest_mem();
    let chain = chain(&mem, &header(kind, sector), readable, writable);
    Request::parse(&mem, &chain, &disk(false)).unwrap().1
}

#[test]
fn a_header_may_be_spread_over_buffers_and_share_them_with_data() {
    // Virtio 1.2 §2.7.4.1: "The device MUST NOT make assumptions about the particular arrangement of descriptors."
    let layouts: [&[u32]; 6] = [
        &[16, 512],
        &[8, 8, 512],
        &[1, 15, 512],
        &[528],
        &[20, 508],
        &[1, 1, 1, 1, 1, 523],
    ];
    for readable in layouts {
        let expected = Request {
            action: Action::Write { offset: 1024 },
            data_bytes: 512,
        };
        assert_eq!(parse(1, 2, readable, &[1]), Ok(expected), "{readable:?}");
    }
}

#[test]
fn the_status_is_the_last_writable_byte() {
    let mem = guest_mem();
    for writable in [&[513][..], &[512, 1], &[1, 512], &[256, 256, 1]] {
        let chain = chain(&mem, &header(0, 0), &[16], writable);
        let (status_at, request) = Request::parse(&mem, &chain, &disk(false)).unwrap();
        let expected = Request {
            action: Action::Read { offset: 0 },
            data_bytes: 512,
        };
        assert_eq!((status_at, request), (512, Ok(expected)), "{writable:?}");
    }
}

#[test]
fn without_a_writable_byte_there_is_no_place_for_a_status() {
    let mem = guest_mem();
    let chain = chain(&mem, &header(1, 0), &[16, 512], &[]);
    assert_eq!(
        Request::parse(&mem, &chain, &disk(false)),
        Err(GuestFault::ShortChain)
    );
}

#[test]
fn a_short_header_is_refused() {
    for length in [0, 1, 15] {
        assert_eq!(
            parse(0, 0, &[length], &[513]),
            Err(GuestFault::ShortChain),
            "{length}"
        );
    }
}

#[test]
fn a_header_outside_ram_is_refused() {
    let mem = guest_mem();
    for address in [LOW_RAM - 8, LOW_RAM, HIGH_RAM - 8, u64::MAX - 8] {
        let mut chain = Chain::default();
        chain.push(Segment { address, bytes: 16 }, false).unwrap();
        chain
            .push(
                Segment {
                    address: 0x1000,
                    bytes: 1,
                },
                true,
            )
            .unwrap();
        let (_, found) = Request::parse(&mem, &chain, &disk(false)).unwrap();
        assert!(
            matches!(found, Err(GuestFault::OutOfRam { .. })),
            "{address:#x}: {found:?}"
        );
    }
}

#[test]
fn sectors_past_the_end_are_refused() {
    for (sector, bytes, is_good) in [
        (0, 4096, true),
        (7, 512, true),
        (8, 0, true),
        (8, 512, false),
        (7, 1024, false),
        (9, 0, false),
        (0, 4608, false),
        (0, 511, false),
        (0, 1, false),
        (u64::MAX, 512, false),
        (u64::MAX / 512, 512, false),
        (u64::MAX / 512 + 1, 512, false),
        (1 << 55, 512, false),
    ] {
        assert_eq!(
            parse(0, sector, &[16], &[bytes, 1]).is_ok(),
            is_good,
            "{sector} {bytes}"
        );
        assert_eq!(
            parse(1, sector, &[16, bytes], &[1]).is_ok(),
            is_good,
            "{sector} {bytes}"
        );
    }
}

#[test]
fn a_request_is_bounded() {
    let most = u32::try_from(BLOCK_REQUEST_BYTES_MAX).unwrap();
    let found = parse(0, 0, &[16], &[most + 512, 1]);
    assert_eq!(
        found,
        Err(GuestFault::TooLarge {
            bytes: u64::from(most) + 512
        })
    );
}

#[test]
fn types_that_the_device_does_not_have_are_unsupported() {
    for kind in [2, 3, 5, 6, 7, 9, 11, 13, 0x8000_0000, u32::MAX] {
        let found = parse(kind, 0, &[16], &[513]);
        assert_eq!(found, Err(GuestFault::UnknownType(kind)));
        assert_eq!(found.unwrap_err().block_status(), 2);
    }
}

#[test]
fn the_serial_number_needs_its_20_bytes() {
    assert_eq!(parse(8, 0, &[16], &[19, 1]), Err(GuestFault::ShortChain));
    assert_eq!(
        parse(8, 0, &[16], &[20, 1]).map(|request| request.action),
        Ok(Action::GetId)
    );
}

#[test]
fn a_read_only_disk_is_never_written_whatever_was_accepted() {
    let mem = guest_mem();
    let chain = chain(&mem, &header(1, 0), &[16, 512], &[1]);
    let (_, found) = Request::parse(&mem, &chain, &disk(true)).unwrap();
    assert_eq!(found, Err(GuestFault::ReadOnly));
}

proptest! {
    #[test]
    fn what_is_parsed_lies_on_the_disk(
        kind in prop_oneof![0_u32..12, any::<u32>()],
        sector in prop_oneof![0_u64..12, any::<u64>()],
        readable in proptest::collection::vec(1_u32..1200, 0..6),
        writable in proptest::collection::vec(1_u32..1200, 0..6),
    ) {
        let mem = guest_mem();
        let chain = chain(&mem, &header(kind, sector), &readable, &writable);
        if let Ok((status_at, parsed)) = Request::parse(&mem, &chain, &disk(false)) {
            let total: u64 = writable.iter().map(|&bytes| u64::from(bytes)).sum();
            prop_assert_eq!(status_at + 1, total);
            if let Ok(Request { action: Action::Read { offset } | Action::Write { offset }, data_bytes }) = parsed {
                prop_assert_eq!(offset, sector * 512);
                prop_assert!(offset + data_bytes <= 512 * SECTORS);
                prop_assert_eq!(data_bytes % 512, 0);
            }
        }
    }
}

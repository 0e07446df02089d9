use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;

fn segments(list: &[(u64, u32)]) -> Vec<Segment> {
    list.iter()
        .map(|&(address, bytes)| Segment { address, bytes })
        .collect()
}

fn mem() -> GuestMem {
    GuestMem::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x2000), 0x1000)]).unwrap()
}

#[test]
fn readable_after_writable_is_bad_chain() {
    let mut chain = Chain::default();
    chain
        .push(
            Segment {
                address: 0,
                bytes: 1,
            },
            true,
        )
        .unwrap();
    let found = chain.push(
        Segment {
            address: 8,
            bytes: 1,
        },
        false,
    );
    assert_eq!(found, Err(GuestFault::BadChain));
}

#[test]
fn bytes_split_over_buffers_are_gathered_in_order() {
    let mem = mem();
    mem.write_slice(b"abc", GuestAddress(0x10)).unwrap();
    mem.write_slice(b"defg", GuestAddress(0x2000)).unwrap();
    let segments = segments(&[(0x10, 3), (0x2000, 4)]);
    let mut found = [0; 5];
    read_at(&mem, &segments, 1, &mut found).unwrap();
    assert_eq!(&found, b"bcdef");
    assert_eq!(
        read_at(&mem, &segments, 3, &mut found),
        Err(GuestFault::ShortChain)
    );
}

#[test]
fn a_buffer_across_the_hole_or_the_end_is_out_of_ram() {
    let mem = mem();
    for (address, bytes) in [
        (0xfff, 2),
        (0x1000, 1),
        (0x2fff, 2),
        (u64::MAX, 2),
        (u64::MAX - 1, 1),
    ] {
        let segment = Segment { address, bytes };
        let mut target = vec![0; bytes as usize];
        let fault = Err(segment.out_of_ram());
        assert_eq!(
            read_at(&mem, &[segment], 0, &mut target),
            fault,
            "{address:#x}"
        );
        assert_eq!(
            write_at(&mem, &[segment], 0, &target),
            fault,
            "{address:#x}"
        );
    }
}

#[test]
fn no_part_of_a_buffer_that_goes_round_the_end_of_addresses_is_in_ram() {
    let mem = mem();
    let segment = Segment {
        address: u64::MAX - 255,
        bytes: 512,
    };
    for skip in [0, 255, 256, 257, 511] {
        let found = write_at(&mem, &[segment], skip, b"x");
        assert!(matches!(found, Err(GuestFault::OutOfRam { .. })), "{skip}");
        let found = read_at(&mem, &[segment], skip, &mut [0]);
        assert!(matches!(found, Err(GuestFault::OutOfRam { .. })), "{skip}");
    }
    let mut low = [0xff; 256];
    mem.read_slice(&mut low, GuestAddress(0)).unwrap();
    assert_eq!(low, [0; 256]);
}

proptest! {
    #[test]
    fn parts_are_the_bytes_asked_for(
        lengths in proptest::collection::vec(1_u32..20, 0..8), skip in 0_u64..200, bytes in 0_u64..200,
    ) {
        let segments: Vec<Segment> = lengths.iter().enumerate()
            .map(|(index, &bytes)| Segment { address: 0x1000 * index as u64, bytes }).collect();
        let all: Vec<u64> = segments.iter()
            .flat_map(|part| part.address..part.address + u64::from(part.bytes)).collect();
        let wanted: Vec<u64> = all.iter().copied()
            .skip(usize::try_from(skip).unwrap()).take(usize::try_from(bytes).unwrap()).collect();
        let found: Vec<u64> = parts(&segments, skip, bytes)
            .flat_map(|part| part.address..part.address + u64::from(part.bytes)).collect();
        prop_assert_eq!(found, wanted);
    }
}

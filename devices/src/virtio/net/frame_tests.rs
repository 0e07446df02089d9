use proptest::prelude::*;

use super::*;

const ALL: u64 = feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_USO;

/// Fields of a header, in order.
#[derive(Clone, Copy, Default)]
struct Fields {
    flags: u8,
    gso_type: u8,
    header_bytes: u16,
    gso_bytes: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Fields {
    fn bytes(self) -> [u8; HEADER_BYTES] {
        let [h0, h1] = self.header_bytes.to_le_bytes();
        let [g0, g1] = self.gso_bytes.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
            9,
            9,
        ]
    }

    fn is_taken(self, frame_bytes: u64, features: u64) -> bool {
        TransmitHeader::check(self.bytes(), frame_bytes, features).is_ok()
    }
}

fn segmented() -> Fields {
    Fields {
        flags: 1,
        gso_type: 1,
        header_bytes: 54,
        gso_bytes: 1448,
        csum_start: 34,
        csum_offset: 16,
    }
}

#[test]
fn plain_frames_from_14_bytes_to_the_most_a_tap_takes_pass() {
    for (bytes, is_taken) in [
        (0, false),
        (13, false),
        (14, true),
        (65_550, true),
        (65_551, false),
    ] {
        assert_eq!(Fields::default().is_taken(bytes, 0), is_taken, "{bytes}");
    }
}

#[test]
fn segmentation_needs_its_feature_a_size_and_a_checksum() {
    assert!(segmented().is_taken(60_000, ALL));
    assert!(!segmented().is_taken(60_000, ALL & !feature::HOST_TSO4));
    assert!(!segmented().is_taken(60_000, ALL & !feature::CSUM));
    assert!(
        !Fields {
            gso_bytes: 0,
            ..segmented()
        }
        .is_taken(60_000, ALL)
    );
    assert!(
        !Fields {
            flags: 0,
            ..segmented()
        }
        .is_taken(60_000, ALL)
    );
    for gso_type in 0..=u8::MAX {
        let is_taken = Fields {
            gso_type,
            ..segmented()
        }
        .is_taken(60_000, ALL);
        assert_eq!(is_taken, [0, 1, 4, 5].contains(&gso_type), "{gso_type:#x}");
    }
    let datagrams = Fields {
        gso_type: 5,
        csum_offset: 6,
        ..segmented()
    };
    assert!(datagrams.is_taken(60_000, ALL));
    assert!(!datagrams.is_taken(60_000, ALL & !feature::HOST_USO));
    assert!(!datagrams.is_taken(60_000, ALL & !feature::CSUM));
}

#[test]
fn a_checksum_outside_the_frame_is_refused() {
    let fields = Fields {
        flags: 1,
        csum_start: 34,
        csum_offset: 16,
        ..Fields::default()
    };
    assert!(fields.is_taken(52, ALL));
    assert!(!fields.is_taken(51, ALL));
    assert!(
        !Fields {
            csum_start: 65_535,
            ..fields
        }
        .is_taken(65_550, ALL)
    );
    assert!(
        !Fields {
            csum_offset: 65_535,
            ..fields
        }
        .is_taken(65_550, ALL)
    );
    assert!(!fields.is_taken(52, 0), "not accepted");
}

#[test]
fn a_header_longer_than_the_frame_is_refused() {
    assert!(
        !Fields {
            header_bytes: 65_535,
            ..Fields::default()
        }
        .is_taken(1500, ALL)
    );
}

#[test]
fn flags_without_meaning_and_the_buffer_count_are_dropped() {
    let fields = Fields {
        flags: 0xfe,
        ..Fields::default()
    };
    let header = TransmitHeader::check(fields.bytes(), 100, ALL).unwrap();
    assert_eq!(header.bytes(), &[0; 12]);
}

proptest! {
    #[test]
    fn what_is_taken_lies_inside_the_frame(header: [u8; 12], frame_bytes in 0_u64..70_000) {
        if let Ok(header) = TransmitHeader::check(header, frame_bytes, ALL) {
            let bytes = header.bytes();
            let field = |at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            prop_assert!(field(2) <= frame_bytes);
            prop_assert!(bytes[0] == 0 || field(6) + field(8) + 2 <= frame_bytes);
            prop_assert!(bytes[1] == 0 || field(4) > 0);
        }
    }
}

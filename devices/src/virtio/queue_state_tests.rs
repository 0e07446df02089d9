use super::*;

fn mem() -> GuestMem {
    GuestMem::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x20000), 0x10000)]).unwrap()
}

fn good() -> QueueStateV1 {
    QueueStateV1 {
        size: 16,
        is_ready: true,
        descriptor_table: 0x1000,
        available_ring: 0x2000,
        used_ring: 0x3000,
        next_available: 7,
        next_used: 6,
    }
}

#[test]
fn a_queue_survives_its_saved_form() {
    let queue = good().to_queue(256, &mem()).unwrap();
    assert_eq!(QueueStateV1::from(&queue), good());
}

#[test]
fn rings_at_the_last_bytes_of_ram_are_accepted() {
    let state = QueueStateV1 {
        available_ring: 0x10000 - 38,
        used_ring: 0x30000 - 136,
        ..good()
    };
    // 38 = 6 + 2 * 16; the used ring ends two bytes before RAM does, for its alignment.
    assert!(state.to_queue(16, &mem()).is_ok());
}

#[test]
fn rings_outside_ram_unaligned_or_overlapping_are_refused() {
    let bad = [
        QueueStateV1 {
            descriptor_table: 0x1001,
            ..good()
        },
        QueueStateV1 {
            available_ring: 0x2001,
            ..good()
        },
        QueueStateV1 {
            used_ring: 0x3002,
            ..good()
        },
        QueueStateV1 {
            descriptor_table: 0xff10,
            ..good()
        },
        QueueStateV1 {
            available_ring: 0x10000 - 36,
            ..good()
        },
        QueueStateV1 {
            used_ring: 0x30000 - 128,
            ..good()
        },
        QueueStateV1 {
            used_ring: 0x10000,
            ..good()
        },
        QueueStateV1 {
            descriptor_table: 0xffff_ffff_ffff_f000,
            ..good()
        },
        QueueStateV1 {
            available_ring: u64::MAX - 1,
            ..good()
        },
        QueueStateV1 {
            available_ring: 0,
            ..good()
        },
        QueueStateV1 {
            descriptor_table: 0,
            available_ring: 0,
            used_ring: 0,
            ..good()
        },
        QueueStateV1 {
            available_ring: 0x1000,
            used_ring: 0x1000,
            ..good()
        },
        QueueStateV1 {
            available_ring: 0x10fe,
            ..good()
        },
        QueueStateV1 { size: 0, ..good() },
        QueueStateV1 { size: 3, ..good() },
        QueueStateV1 {
            size: 512,
            ..good()
        },
    ];
    for state in bad {
        assert!(state.to_queue(256, &mem()).is_err(), "{state:x?}");
    }
}

#[test]
fn an_unused_queue_may_have_any_address() {
    let state = QueueStateV1 {
        is_ready: false,
        descriptor_table: 3,
        ..good()
    };
    assert!(!state.to_queue(256, &mem()).unwrap().ready());
}

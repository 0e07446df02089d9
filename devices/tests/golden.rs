//! Stored bytes of each version of each saved form. A file here never changes: a new layout is a new version.
//!
//! `LIGHTV_WRITE_GOLDEN=1 cargo test -p lightv-devices --test golden` writes files that do not exist yet.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use lightv_devices::state::{
    BalloonStateV1, BlockStateV1, ConsoleStateV1, EntropyStateV1, HintingStateV1, NetStateV1,
    NetStateV2, OverlayMapV1, OverlayRunV1, PortPairV1, PortStateV1, QueueStateV1, Section,
    SerialStateV1, StatV1, TransportStateV1, VsockStateV1,
};

fn path<S: Section>(case: &str) -> PathBuf {
    let name = format!("{}-v{}-{case}", S::KIND, S::VERSION);
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The stored bytes decode to the stored text, and `state` encodes to them.
fn check<S: Section + Debug + PartialEq>(case: &str, state: &S) {
    let (bytes_path, text_path) = (
        path::<S>(case).with_extension("bin"),
        path::<S>(case).with_extension("txt"),
    );
    let encoded = postcard::to_stdvec(state).unwrap();
    let text = format!("{state:#?}\n");
    if std::env::var_os("LIGHTV_WRITE_GOLDEN").is_some() && !bytes_path.exists() {
        fs::write(&bytes_path, &encoded).unwrap();
        fs::write(&text_path, &text).unwrap();
    }
    let stored = fs::read(&bytes_path).unwrap();
    let (decoded, rest) = postcard::take_from_bytes::<S>(&stored).unwrap();
    assert!(rest.is_empty(), "{case}: bytes left over");
    let stored_text = fs::read_to_string(&text_path).unwrap();
    assert_eq!(format!("{decoded:#?}\n"), stored_text, "{case}: decode");
    assert_eq!(text, stored_text, "{case}: the state of this test");
    assert_eq!(encoded, stored, "{case}: encode");
    for length in 0..stored.len() {
        let found = postcard::from_bytes::<S>(&stored[..length]);
        assert!(
            found.is_err(),
            "{case}: {length} of {} bytes decode",
            stored.len()
        );
    }
}

#[test]
fn overlay_map() {
    let run = |block, blocks, is_zero| OverlayRunV1 {
        block,
        blocks,
        is_zero,
    };
    let over_a_file = OverlayMapV1 {
        disk_bytes: (1 << 30) + 512,
        base: Some(0x0123_4567_89ab_cdef),
        runs: vec![run(0, 1, false), run(300, 70_000, true)],
    };
    check("over-a-file", &over_a_file);
    let in_an_image = OverlayMapV1 {
        disk_bytes: 4096,
        base: None,
        runs: vec![],
    };
    check("in-an-image", &in_an_image);
}

#[test]
fn transport() {
    let queue = QueueStateV1 {
        size: 256,
        is_ready: true,
        descriptor_table: 0x1234_5000,
        available_ring: 0x1_0000_0002,
        used_ring: 0xffff_f004,
        next_available: 0xfffe,
        next_used: 0xfffd,
    };
    let running = TransportStateV1 {
        device_id: 1,
        status: 0x4f,
        is_active: true,
        device_features_select: 1,
        driver_features_select: 1,
        acked_features: 0x1_3000_8023,
        queue_select: 1,
        interrupt_status: 3,
        config_generation: 7,
        queues: vec![queue, QueueStateV1::unused(256)],
    };
    check("running", &running);
    let fresh = TransportStateV1 {
        device_id: 4,
        status: 0,
        is_active: false,
        device_features_select: 0,
        driver_features_select: 0,
        acked_features: 0,
        queue_select: 0,
        interrupt_status: 0,
        config_generation: 0,
        queues: vec![QueueStateV1::unused(64)],
    };
    check("fresh", &fresh);
}

#[test]
fn block() {
    let state = BlockStateV1 {
        read_only: false,
        flush_offered: true,
        len_bytes: 300_000_001,
    };
    check("writeback", &state);
    check(
        "read-only",
        &BlockStateV1 {
            read_only: true,
            flush_offered: false,
            ..state
        },
    );
}

#[test]
fn net() {
    let state = NetStateV1 {
        mac: [6, 0, 0xac, 0x10, 0, 2],
        mtu: None,
    };
    check("plain", &state);
    check(
        "mtu",
        &NetStateV1 {
            mtu: Some(1500),
            ..state
        },
    );
    let both = NetStateV2 {
        active_pairs: 2,
        ..state.into()
    };
    check("pairs", &both);
    assert_eq!(both.as_v1(), None);
    assert_eq!(NetStateV2::from(state).as_v1(), Some(state));
}

#[test]
fn entropy() {
    // It has no bytes, so the loop over truncations in `check` has nothing to refuse.
    check("only", &EntropyStateV1 {});
}

#[test]
fn console() {
    let fresh = PortStateV1::default();
    let open = PortStateV1 {
        is_ready: true,
        is_guest_open: true,
        told_open: Some(true),
        owed: 0,
    };
    let named = PortStateV1 {
        is_guest_open: false,
        told_open: Some(false),
        owed: 8,
        ..open
    };
    let added = PortStateV1 { owed: 1, ..fresh };
    let state = ConsoleStateV1 {
        is_driver_ready: true,
        ports: vec![named, open, fresh, added, open],
    };
    check("open", &state);
}

#[test]
fn balloon() {
    let state = BalloonStateV1 {
        actual_pages: 0x1234_5678,
        hinting: HintingStateV1 {
            host_cmd: 1,
            guest_cmd: Some(0),
            last_run: 300,
            acknowledge_on_stop: true,
        },
        stats: vec![
            StatV1 { tag: 4, value: 5 },
            StatV1 {
                tag: 15,
                value: u64::MAX,
            },
        ],
    };
    check("told", &state);
}

#[test]
fn vsock() {
    let fresh = VsockStateV1 {
        guest_cid: 3,
        has_driver: false,
        next_host_port: 1 << 30,
        connections: Vec::new(),
    };
    check("fresh", &fresh);
    let pair = |guest, host| PortPairV1 { guest, host };
    let connected = VsockStateV1 {
        has_driver: true,
        next_host_port: (1 << 30) + 300,
        connections: vec![pair(52, (1 << 30) + 299), pair(u32::MAX, 8080)],
        ..fresh
    };
    check("connected", &connected);
}

#[test]
fn serial() {
    let state = SerialStateV1 {
        baud_divisor: [12, 1],
        interrupt_enable: 5,
        interrupt_identification: 4,
        line_control: 3,
        line_status: 0x61,
        modem_control: 0x0b,
        modem_status: 0xb0,
        scratch: 0x5a,
        input: b"unread".to_vec(),
    };
    check("input", &state);
}

use std::sync::Mutex;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::test_support::{HIGH_RAM, LOW_RAM, Registers, guest_mem, shown_registers};

const FEATURES: u64 = feature::VERSION_1 | feature::RING_EVENT_IDX | 1;

/// What the front asked of its device.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Activate {
        ready: Vec<bool>,
        acked_features: u64,
    },
    Reset,
    Notify(u32),
}

#[derive(Clone, Default)]
struct Recorder {
    calls: Arc<Mutex<Vec<Call>>>,
    refuses: bool,
}

impl DeviceLink for Recorder {
    fn activate(&self, queues: Vec<Queue>, acked_features: u64) -> Result<(), ActivateRefused> {
        let ready = queues.iter().map(virtio_queue::QueueT::ready).collect();
        self.calls.lock().unwrap().push(Call::Activate {
            ready,
            acked_features,
        });
        if self.refuses {
            Err(ActivateRefused)
        } else {
            Ok(())
        }
    }

    fn reset(&self) {
        self.calls.lock().unwrap().push(Call::Reset);
    }

    fn notify(&self, queue: u32) {
        self.calls.lock().unwrap().push(Call::Notify(queue));
    }
}

struct Bench {
    front: MmioFront,
    recorder: Recorder,
    irqfd: EventFd,
    interrupt: Interrupt,
    shown: Registers,
}

fn parts(recorder: &Recorder) -> (FrontParts, EventFd, Registers) {
    let irqfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let counters = Arc::new(Counters::default());
    let interrupt = Interrupt::new(irqfd.try_clone().unwrap(), Arc::clone(&counters));
    let profile = DeviceProfile {
        kind: DeviceKind::Net,
        features: FEATURES,
        queue_sizes: vec![256, 64],
        live_config: None,
        config: (1..=20).collect(),
        counters,
    };
    let link = Box::new(recorder.clone());
    let (page, shown) = shown_registers();
    (
        FrontParts {
            profile,
            mem: guest_mem(),
            interrupt,
            link,
            page: Some(page),
        },
        irqfd,
        shown,
    )
}

impl Bench {
    fn new() -> Self {
        Self::with(Recorder::default())
    }

    fn with(recorder: Recorder) -> Self {
        let (parts, irqfd, shown) = parts(&recorder);
        let interrupt = parts.interrupt.clone();
        Self {
            front: MmioFront::new(parts),
            recorder,
            irqfd,
            interrupt,
            shown,
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.front.read(offset, &mut data);
        let value = u32::from_le_bytes(data);
        assert_eq!(self.shown.at(offset), value, "the page at {offset:#x}");
        value
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.front.write(offset, &value.to_le_bytes());
    }

    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.recorder.calls.lock().unwrap())
    }

    fn ignored(&self) -> u64 {
        self.front
            .parts
            .profile
            .counters
            .snapshot()
            .ignored_accesses
    }

    fn negotiate(&mut self) {
        for (register, value) in [
            (reg::STATUS, 1),
            (reg::STATUS, 3),
            (reg::DRIVER_FEATURES_SELECT, 0),
            (reg::DRIVER_FEATURES, 1),
            (reg::DRIVER_FEATURES_SELECT, 1),
            (reg::DRIVER_FEATURES, 1),
            (reg::STATUS, 11),
        ] {
            self.write(register, value);
        }
        assert_eq!(self.read(reg::STATUS), 11);
    }

    fn set_up_queue(&mut self, queue: u32, [table, available, used]: [u64; 3]) {
        self.write(reg::QUEUE_SELECT, queue);
        self.write(reg::QUEUE_SIZE, 16);
        for (register, address) in [
            (reg::QUEUE_DESC_LOW, table),
            (reg::QUEUE_DRIVER_LOW, available),
            (reg::QUEUE_DEVICE_LOW, used),
        ] {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            self.write(register, u32::from_le_bytes([a, b, c, d]));
            self.write(register + 4, u32::from_le_bytes([e, f, g, h]));
        }
        self.write(reg::QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.negotiate();
        self.set_up_queue(0, [0x1000, 0x2000, 0x3000]);
        self.set_up_queue(1, [HIGH_RAM, HIGH_RAM + 0x1000, HIGH_RAM + 0x2000]);
        self.write(reg::STATUS, 15);
    }
}

#[test]
fn the_registers_of_identity_are_those_of_the_specification() {
    let mut bench = Bench::new();
    let found = [0x000, 0x004, 0x008].map(|offset| bench.read(offset));
    assert_eq!(found, [0x7472_6976, 2, 1]);
    bench.write(reg::DEVICE_FEATURES_SELECT, 1);
    assert_eq!(bench.read(reg::DEVICE_FEATURES), 1);
    bench.write(reg::DEVICE_FEATURES_SELECT, 2);
    assert_eq!(bench.read(reg::DEVICE_FEATURES), 0);
    for offset in [0x0b0, 0x0b4, 0x0b8, 0x0bc] {
        assert_eq!(
            bench.read(offset),
            u32::MAX,
            "no shared memory: {offset:#x}"
        );
    }
    bench.write(reg::QUEUE_SELECT, 1);
    assert_eq!(bench.read(reg::QUEUE_SIZE_MAX), 64);
    bench.write(reg::QUEUE_SELECT, 2);
    assert_eq!(
        bench.read(reg::QUEUE_SIZE_MAX),
        0,
        "§4.2.2: 0 if the queue is not available"
    );
}

#[test]
fn a_driver_that_follows_the_steps_starts_the_device_once() {
    let mut bench = Bench::new();
    bench.start();
    assert_eq!(bench.read(reg::STATUS), 15);
    let call = Call::Activate {
        ready: vec![true, true],
        acked_features: feature::VERSION_1 | 1,
    };
    assert_eq!(bench.take_calls(), [call]);
    bench.write(reg::STATUS, 15);
    assert_eq!(bench.take_calls(), []);
    assert_eq!(bench.ignored(), 0);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    // §2.2.2: "The device MUST NOT offer... SHOULD accept any valid subset"; FEATURES_OK reads back 0 otherwise.
    for (low, high) in [(1, 0), (3, 1), (1, 3), (0x8000_0000, 1)] {
        let mut bench = Bench::new();
        for (register, value) in [
            (reg::STATUS, 1),
            (reg::STATUS, 3),
            (reg::DRIVER_FEATURES, low),
            (reg::DRIVER_FEATURES_SELECT, 1),
            (reg::DRIVER_FEATURES, high),
            (reg::STATUS, 11),
        ] {
            bench.write(register, value);
        }
        assert_eq!(bench.read(reg::STATUS), 3, "{low:#x} {high:#x}");
        bench.write(reg::STATUS, 15);
        assert_eq!(bench.read(reg::STATUS), 3);
        assert_eq!(bench.take_calls(), []);
    }
}

#[test]
fn steps_out_of_order_are_ignored() {
    let mut bench = Bench::new();
    for status in [2, 4, 8, 10, 12, 0x100, 0x7f00] {
        bench.write(reg::STATUS, status);
        assert_eq!(bench.read(reg::STATUS), 0, "{status:#x}");
    }
    bench.write(reg::STATUS, 3);
    assert_eq!(
        bench.read(reg::STATUS),
        3,
        "two steps in one write are in order"
    );
    bench.write(reg::STATUS, 1);
    assert_eq!(bench.read(reg::STATUS), 3, "a driver cannot clear a bit");
    bench.write(reg::STATUS, 0x83);
    assert_eq!(bench.read(reg::STATUS), 0x83);
    bench.write(reg::STATUS, 0x8b);
    assert_eq!(
        bench.read(reg::STATUS),
        0x83,
        "a driver that has failed goes no further"
    );
    assert_eq!(bench.take_calls(), []);
}

#[test]
fn a_reset_puts_everything_back_and_waits_for_the_device() {
    let mut bench = Bench::new();
    bench.start();
    bench.interrupt.signal_used_ring();
    bench.interrupt.raise_needs_reset();
    bench.take_calls();
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.take_calls(), [Call::Reset]);
    assert_eq!(
        [reg::STATUS, reg::INTERRUPT_STATUS].map(|offset| bench.read(offset)),
        [0, 0]
    );
    for queue in 0..2 {
        bench.write(reg::QUEUE_SELECT, queue);
        assert_eq!(bench.read(reg::QUEUE_READY), 0);
    }
    assert_eq!(bench.front.acked_features(), 0);
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.take_calls(), [], "an idle device is not asked");
    bench.start();
    assert_eq!(bench.take_calls().len(), 1, "it starts again");
}

#[test]
fn rings_that_cannot_be_used_end_in_needs_reset() {
    let good = [0x1000, 0x2000, 0x3000];
    for rings in [
        [0x1001, 0x2000, 0x3000],
        [0x1000, 0x2001, 0x3000],
        [0x1000, 0x2000, 0x3002],
        [LOW_RAM - 16, 0x2000, 0x3000],
        [0x1000, LOW_RAM - 4, 0x3000],
        [0x1000, 0x2000, LOW_RAM - 4],
        [0xffff_ffff_ffff_f000, 0x2000, 0x3000],
        [0x1000, 0x2000, 0xc000_0000],
        [0, 0, 0],
        [0x1000, 0x1000, 0x1000],
    ] {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.set_up_queue(0, rings);
        bench.write(reg::STATUS, 15);
        assert_eq!(bench.read(reg::STATUS), 15 | 64, "{rings:x?}");
        assert_eq!(bench.read(reg::INTERRUPT_STATUS), 2, "{rings:x?}");
        assert_eq!(bench.irqfd.read().unwrap(), 1, "{rings:x?}");
        assert_eq!(bench.take_calls(), [], "{rings:x?}");
        bench.write(reg::QUEUE_NOTIFY, 0);
        assert_eq!(bench.take_calls(), [], "{rings:x?}");
        bench.write(reg::STATUS, 0);
        assert_eq!(bench.read(reg::STATUS), 0);
        bench.negotiate();
        bench.set_up_queue(0, good);
        bench.write(reg::STATUS, 15);
        assert_eq!(bench.read(reg::STATUS), 15, "{rings:x?}");
    }
}

#[test]
fn a_device_that_does_not_start_ends_in_needs_reset() {
    let mut bench = Bench::with(Recorder {
        refuses: true,
        ..Recorder::default()
    });
    bench.start();
    assert_eq!(bench.read(reg::STATUS), 15 | 64);
    assert!(!bench.front.is_active());
    bench.take_calls();
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.take_calls(), []);
}

#[test]
fn driver_ok_without_queues_kills_nothing() {
    // Cloud Hypervisor PR 8190.
    let mut bench = Bench::new();
    bench.negotiate();
    bench.write(reg::STATUS, 15);
    assert_eq!(bench.read(reg::STATUS), 15);
    let acked_features = feature::VERSION_1 | 1;
    let call = Call::Activate {
        ready: vec![false, false],
        acked_features,
    };
    assert_eq!(bench.take_calls(), [call]);
    bench.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(bench.take_calls(), []);
}

#[test]
fn notifications_are_forwarded_only_for_queues_in_use() {
    let mut bench = Bench::new();
    bench.write(reg::QUEUE_NOTIFY, 0);
    bench.negotiate();
    bench.set_up_queue(0, [0x1000, 0x2000, 0x3000]);
    bench.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(bench.take_calls(), []);
    bench.write(reg::STATUS, 15);
    bench.take_calls();
    for queue in [0, 1, 2, 0xffff, u32::MAX] {
        bench.write(reg::QUEUE_NOTIFY, queue);
    }
    assert_eq!(bench.take_calls(), [Call::Notify(0)]);
    assert_eq!(bench.ignored(), 6);
}

#[test]
fn a_queue_is_set_up_at_its_time_only() {
    let mut bench = Bench::new();
    bench.set_up_queue(0, [0x1000, 0x2000, 0x3000]);
    assert_eq!(bench.read(reg::QUEUE_READY), 0, "before FEATURES_OK");
    bench.negotiate();
    bench.set_up_queue(0, [0x1000, 0x2000, 0x3000]);
    assert_eq!(bench.read(reg::QUEUE_READY), 1);
    let before = bench.front.queues.clone();
    for offset in [0x038, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4] {
        bench.write(offset, 8);
    }
    assert_eq!(bench.front.queues, before, "not while it is ready");
    bench.write(reg::QUEUE_READY, 0);
    assert_eq!(bench.read(reg::QUEUE_READY), 0);
    for size in [0, 3, 512, 0x1_0000, 0x1_0010, u32::MAX] {
        bench.write(reg::QUEUE_SIZE, size);
        assert_eq!(bench.front.queues[0].size, 16, "{size}");
    }
}

#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let mut bench = Bench::new();
    bench.start();
    bench.interrupt.signal_used_ring();
    bench.interrupt.signal_config();
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 3);
    bench.write(reg::INTERRUPT_ACK, 1);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 2);
    bench.write(reg::INTERRUPT_ACK, u32::MAX);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_driver_that_writes_back_needs_reset_changes_nothing() {
    // Linux reads the status, adds a bit, and writes all of it.
    let mut bench = Bench::new();
    bench.start();
    bench.interrupt.raise_needs_reset();
    bench.write(reg::STATUS, 15 | 64 | 128);
    assert_eq!(bench.read(reg::STATUS), 15 | 64 | 128);
    bench.write(reg::STATUS, 0);
    bench.write(reg::STATUS, 64);
    assert_eq!(bench.read(reg::STATUS), 0);
}

#[test]
fn accesses_of_any_width_at_any_offset_are_safe() {
    let mut bench = Bench::new();
    bench.start();
    for offset in (0..0x1100).chain([u64::MAX, u64::MAX - 0xff, 1 << 32]) {
        for width in [0_usize, 1, 2, 3, 4, 5, 8, 16, 64] {
            let mut data = vec![0xee; width];
            bench.front.read(offset, &mut data);
            if offset < reg::CONFIG && width != 4 {
                assert!(data.iter().all(|&byte| byte == 0), "{offset:#x} {width}");
                bench.front.write(offset, &vec![0xff; width]);
            }
            if offset >= reg::CONFIG {
                bench.front.write(offset, &vec![0xff; width]);
            }
        }
        if offset % 4 != 0 {
            assert!(
                offset >= reg::CONFIG || bench.read(offset) == 0,
                "{offset:#x}"
            );
            bench.write(offset, u32::MAX);
        }
    }
    assert_eq!(bench.read(reg::STATUS), 15, "none of it had an effect");
    assert_eq!(
        [0, 4, 8].map(|offset| bench.read(offset)),
        [MAGIC_VALUE, 2, 1]
    );
}

#[test]
fn configuration_is_read_in_any_width_and_ends_in_zeros() {
    let mut bench = Bench::new();
    for (offset, expected) in [
        (0x100, vec![1]),
        (0x101, vec![2, 3]),
        (0x10e, vec![15, 16, 17, 18]),
        (0x112, vec![19, 20, 0, 0, 0, 0, 0, 0]),
        (0x114, vec![0, 0, 0, 0]),
        (0xffe, vec![0, 0, 0, 0]),
    ] {
        let mut data = vec![0xee; expected.len()];
        bench.front.read(offset, &mut data);
        assert_eq!(data, expected, "{offset:#x}");
    }
    bench.write(0x100, u32::MAX);
    assert_eq!(bench.read(0x100), 0x0403_0201);
}

#[test]
fn a_new_configuration_has_a_new_generation_and_is_announced_to_a_running_driver() {
    let mut bench = Bench::new();
    bench.front.set_config(&[9]);
    assert!(bench.irqfd.read().is_err());
    assert_eq!(
        (bench.read(reg::CONFIG_GENERATION), bench.read(0x100)),
        (1, 9)
    );
    bench.start();
    bench.front.set_config(&[9]);
    assert_eq!(bench.read(reg::CONFIG_GENERATION), 1);
    bench.front.set_config(&[10]);
    assert_eq!(bench.read(reg::CONFIG_GENERATION), 2);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 2);
}

/// A state of each stage that can be saved.
fn saved_states() -> Vec<TransportStateV1> {
    let mut states = Vec::new();
    let mut bench = Bench::new();
    states.push(bench.front.save(&[]));
    bench.write(reg::STATUS, 3);
    bench.write(reg::DRIVER_FEATURES, u32::MAX);
    states.push(bench.front.save(&[]));
    bench.write(reg::STATUS, 0);
    bench.negotiate();
    bench.set_up_queue(1, [3, 5, 7]);
    states.push(bench.front.save(&[]));
    let mut bench = Bench::new();
    bench.start();
    bench.interrupt.signal_used_ring();
    let queues: Vec<Queue> = (0..2_u16)
        .map(|index| {
            let stopped = QueueStateV1 {
                next_available: 7 + index,
                next_used: 7 + index,
                ..bench.front.queues[usize::from(index)]
            };
            stopped
                .to_queue([256, 64][usize::from(index)], &guest_mem())
                .unwrap()
        })
        .collect();
    states.push(bench.front.save(&queues));
    bench.interrupt.raise_needs_reset();
    states.push(bench.front.save(&queues));
    bench.write(reg::STATUS, 15 | 128);
    states.push(bench.front.save(&queues));
    states
}

#[test]
fn save_restore_save_is_equal_at_every_stage() {
    for state in saved_states() {
        let (parts, irqfd, _) = parts(&Recorder::default());
        let (front, resume) = MmioFront::restore(parts, &state).unwrap();
        let queues = resume.map(|resume| {
            assert_eq!(resume.acked_features, state.acked_features);
            resume.queues
        });
        assert_eq!(queues.is_some(), state.is_active);
        assert_eq!(front.save(&queues.unwrap_or_default()), state);
        assert!(irqfd.read().is_err(), "restoring raises nothing by itself");
    }
}

#[test]
fn impossible_states_are_refused() {
    let [.., running, _, _] = &saved_states()[..] else {
        panic!()
    };
    assert!(running.is_active);
    let change = |change: fn(&mut TransportStateV1)| {
        let mut state = running.clone();
        change(&mut state);
        state
    };
    let states = [
        change(|state| state.device_id = 2),
        change(|state| state.status = 4),
        change(|state| state.status = 16 | 15),
        change(|state| state.status = 11),
        change(|state| state.acked_features = 1),
        change(|state| state.acked_features |= 2),
        change(|state| state.interrupt_status = 4),
        change(|state| state.queues.truncate(1)),
        change(|state| state.queues.push(QueueStateV1::unused(256))),
        change(|state| state.queues[0].size = 0),
        change(|state| state.queues[0].size = 257),
        change(|state| state.queues[1].size = 128),
        change(|state| state.queues[0].descriptor_table = LOW_RAM),
        change(|state| state.queues[0].used_ring = u64::MAX - 3),
        change(|state| state.queues[0].next_used = state.queues[0].next_available.wrapping_add(1)),
        change(|state| state.queues[0].next_available = 100),
        change(|state| state.queues[0].is_ready = false),
        change(|state| state.is_active = false),
    ];
    for (number, state) in (0..).zip(states) {
        let (parts, _, _) = parts(&Recorder::default());
        let found = MmioFront::restore(parts, &state);
        assert!(found.is_err(), "{number}: {state:x?}");
    }
}

proptest! {
    /// Whatever a guest writes: the status is one that a driver can reach, calls are in order, and a reset helps.
    #[test]
    fn register_sequences_keep_the_device_in_order(
        accesses in proptest::collection::vec(
            (
                prop_oneof![
                    3 => proptest::sample::select(vec![
                        reg::STATUS, reg::QUEUE_READY, reg::QUEUE_SELECT, reg::QUEUE_SIZE, reg::DRIVER_FEATURES,
                        reg::DRIVER_FEATURES_SELECT, reg::QUEUE_DESC_LOW, reg::QUEUE_DRIVER_LOW,
                        reg::QUEUE_DEVICE_LOW, reg::QUEUE_NOTIFY, reg::INTERRUPT_ACK,
                    ]),
                    1 => 0_u64..0x200,
                ],
                prop_oneof![
                    4 => proptest::sample::select(vec![0_u32, 1, 3, 11, 15, 16, 0x1000, 0x2000, 0x3000]),
                    1 => any::<u32>(),
                ],
                prop_oneof![9 => Just(4_usize), 1 => 0_usize..9],
            ),
            0..60,
        )
    ) {
        let mut bench = Bench::new();
        let mut is_active = false;
        for (offset, value, width) in accesses {
            let data = [value.to_le_bytes(), [0; 4]].concat();
            bench.front.write(offset, &data[..width]);
            let mut read = [0; 8];
            bench.front.read(offset, &mut read[..width]);
            for call in bench.take_calls() {
                match call {
                    Call::Activate { .. } => {
                        prop_assert!(!is_active);
                        is_active = true;
                    }
                    Call::Reset => {
                        prop_assert!(is_active);
                        is_active = false;
                    }
                    Call::Notify(_) => prop_assert!(is_active),
                }
            }
            prop_assert_eq!(bench.front.is_active(), is_active);
            let status = u8::try_from(bench.read(reg::STATUS)).unwrap() & !bits::DEVICE_NEEDS_RESET;
            prop_assert!(DeviceStatus::from_saved(status).is_some(), "{status}");
            let (parts, _, _) = parts(&Recorder::default());
            let saved = bench.front.save(&[]);
            prop_assert!(MmioFront::restore(parts, &saved).is_ok(), "{saved:?}");
        }
        bench.write(reg::STATUS, 0);
        bench.take_calls();
        bench.start();
        prop_assert_eq!(bench.read(reg::STATUS), 15);
    }
}

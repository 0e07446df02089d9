use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::test_support::{Desc, HIGH_RAM, INDIRECT, LOW_RAM, NEXT, WRITE, guest_mem};
use crate::virtio::queue_state::QueueStateV1;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 8;

/// A ring of eight with the driver's side in guest memory.
struct Bench {
    ring: Ring,
    mem: Arc<GuestMem>,
    irqfd: EventFd,
    interrupt: Interrupt,
    available_index: u16,
}

impl Bench {
    fn new(features: u64) -> Self {
        Self::at_position(features, 0)
    }

    fn at_position(features: u64, position: u16) -> Self {
        let mem = guest_mem();
        let irqfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let counters = Arc::new(Counters::default());
        let interrupt = Interrupt::new(irqfd.try_clone().unwrap(), Arc::clone(&counters));
        let state = QueueStateV1 {
            size: SIZE,
            is_ready: true,
            descriptor_table: TABLE,
            available_ring: AVAILABLE,
            used_ring: USED,
            next_available: position,
            next_used: position,
        };
        let queue: Queue = state.to_queue(SIZE, &mem).unwrap();
        let context = RingContext {
            mem: Arc::clone(&mem),
            interrupt: interrupt.clone(),
            counters,
            acked_features: features,
        };
        let bench = Self {
            ring: Ring::new(queue, context),
            mem,
            irqfd,
            interrupt,
            available_index: position,
        };
        bench.write_u16(AVAILABLE + 2, position);
        bench.write_u16(USED + 2, position);
        bench
    }

    fn write_u16(&self, address: u64, value: u16) {
        self.mem
            .write_slice(&value.to_le_bytes(), GuestAddress(address))
            .unwrap();
    }

    fn read_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.mem
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        u16::from_le_bytes(bytes)
    }

    fn desc(&self, table: u64, index: u16, desc: Desc) {
        let at = table + 16 * u64::from(index);
        self.mem
            .write_slice(&desc.address.to_le_bytes(), GuestAddress(at))
            .unwrap();
        self.mem
            .write_slice(&desc.bytes.to_le_bytes(), GuestAddress(at + 8))
            .unwrap();
        self.write_u16(at + 12, desc.flags);
        self.write_u16(at + 14, desc.next);
    }

    fn offer(&mut self, head: u16) {
        self.write_u16(
            AVAILABLE + 4 + 2 * u64::from(self.available_index % SIZE),
            head,
        );
        self.available_index = self.available_index.wrapping_add(1);
        self.write_u16(AVAILABLE + 2, self.available_index);
    }

    fn pop_chain(&mut self) -> Chain {
        match self.ring.pop() {
            Popped::Chain(chain) => chain,
            other => panic!("{other:?}"),
        }
    }

    /// Offers a chain that begins with `desc` at 0 and expects it to be malformed, and given back.
    fn expect_malformed(&mut self, what: &str) {
        let used = self.read_u16(USED + 2);
        self.offer(0);
        let found = self.ring.pop();
        assert!(matches!(found, Popped::Malformed), "{what}: {found:?}");
        assert_eq!(
            self.read_u16(USED + 2),
            used.wrapping_add(1),
            "{what}: given back once"
        );
        assert!(!self.interrupt.needs_reset(), "{what}: the device goes on");
    }
}

fn one_desc(address: u64, bytes: u32) -> Desc {
    Desc {
        address,
        bytes,
        flags: 0,
        next: 0,
    }
}

#[test]
fn a_chain_is_popped_in_order_and_given_back() {
    let mut bench = Bench::at_position(0, 0xffff);
    bench.desc(
        TABLE,
        3,
        Desc {
            address: 0x5000,
            bytes: 16,
            flags: NEXT,
            next: 1,
        },
    );
    bench.desc(
        TABLE,
        1,
        Desc {
            address: HIGH_RAM,
            bytes: 512,
            flags: NEXT | WRITE,
            next: 7,
        },
    );
    bench.desc(
        TABLE,
        7,
        Desc {
            address: 0x6000,
            bytes: 1,
            flags: WRITE,
            next: 0,
        },
    );
    bench.offer(3);
    let chain = bench.pop_chain();
    assert_eq!(chain.head(), 3);
    assert_eq!(
        chain.readable(),
        [Segment {
            address: 0x5000,
            bytes: 16
        }]
    );
    let expected = [
        Segment {
            address: HIGH_RAM,
            bytes: 512,
        },
        Segment {
            address: 0x6000,
            bytes: 1,
        },
    ];
    assert_eq!(chain.writable(), expected);
    assert!(matches!(bench.ring.pop(), Popped::Empty));
    bench.ring.complete(chain, 513);
    assert_eq!(bench.read_u16(USED + 2), 0, "the index wraps");
    let slot = USED + 4 + 8 * 7;
    assert_eq!((bench.read_u16(slot), bench.read_u16(slot + 4)), (3, 513));
}

#[test]
fn malformed_chains_are_given_back_empty_and_the_ring_goes_on() {
    let mut bench = Bench::new(feature::RING_INDIRECT_DESC);
    let link = |next| Desc {
        address: 0x5000,
        bytes: 1,
        flags: NEXT,
        next,
    };
    bench.desc(TABLE, 0, link(0));
    bench.expect_malformed("a chain that points to itself");
    bench.desc(TABLE, 0, link(1));
    bench.desc(TABLE, 1, link(0));
    bench.expect_malformed("a loop of two");
    bench.desc(TABLE, 0, link(SIZE));
    bench.expect_malformed("next outside the table");
    bench.desc(
        TABLE,
        0,
        Desc {
            flags: NEXT,
            next: 1,
            ..one_desc(0x5000, u32::MAX)
        },
    );
    bench.desc(TABLE, 1, one_desc(0x5000, 1));
    bench.expect_malformed("2^32 bytes");
    bench.desc(
        TABLE,
        0,
        Desc {
            flags: NEXT | WRITE,
            next: 1,
            ..one_desc(0x5000, 1)
        },
    );
    bench.expect_malformed("readable after writable");
    bench.desc(TABLE, 0, one_desc(0x5000, 4));
    bench.offer(0);
    assert_eq!(bench.pop_chain().readable().len(), 1);
}

#[test]
fn malformed_indirect_tables_are_given_back_empty_and_the_ring_goes_on() {
    let mut bench = Bench::new(feature::RING_INDIRECT_DESC);
    let indirect = |address, bytes| Desc {
        address,
        bytes,
        flags: INDIRECT,
        next: 0,
    };
    for (address, bytes, what) in [
        (0x6000, 0, "an empty indirect table"),
        (0x6000, 24, "one and a half descriptors"),
        (LOW_RAM - 8, 16, "an indirect table across the hole"),
        (
            u64::MAX - 7,
            16,
            "an indirect table at the end of all addresses",
        ),
        (
            0xffff_ffff_ffff_fff0,
            0xffff_fff0,
            "an endless indirect table",
        ),
    ] {
        bench.desc(TABLE, 0, indirect(address, bytes));
        bench.expect_malformed(what);
    }
    bench.desc(
        TABLE,
        0,
        Desc {
            flags: INDIRECT | NEXT,
            next: 1,
            ..one_desc(0x6000, 16)
        },
    );
    bench.expect_malformed("indirect with next");
    bench.desc(TABLE, 0, indirect(0x6000, 16));
    bench.desc(0x6000, 0, indirect(0x7000, 16));
    bench.expect_malformed("indirect in indirect");
    bench.desc(
        0x6000,
        0,
        Desc {
            flags: NEXT,
            next: 0,
            ..one_desc(0x5000, 1)
        },
    );
    bench.expect_malformed("a loop in an indirect table");

    bench.desc(TABLE, 0, one_desc(0x5000, 4));
    bench.offer(0);
    assert_eq!(bench.pop_chain().readable().len(), 1);
}

#[test]
fn indirect_chains_have_up_to_256_descriptors() {
    for (count, is_taken) in [(1_u16, true), (256, true), (257, false), (4096, false)] {
        let mut bench = Bench::new(feature::RING_INDIRECT_DESC);
        for index in 0..count {
            let flags = if index + 1 < count { NEXT } else { 0 };
            bench.desc(
                0x1_0000,
                index,
                Desc {
                    address: 0x5000,
                    bytes: 1,
                    flags,
                    next: index + 1,
                },
            );
        }
        let bytes = u32::from(count) * 16;
        bench.desc(
            TABLE,
            0,
            Desc {
                address: 0x1_0000,
                bytes,
                flags: INDIRECT,
                next: 0,
            },
        );
        bench.offer(0);
        match bench.ring.pop() {
            Popped::Chain(chain) => {
                assert!(is_taken, "{count}");
                assert_eq!(chain.readable().len(), usize::from(count));
            }
            other => assert!(!is_taken, "{count}: {other:?}"),
        }
    }
}

#[test]
fn direct_descriptors_may_precede_an_indirect_table() {
    let mut bench = Bench::new(feature::RING_INDIRECT_DESC);
    bench.desc(
        TABLE,
        0,
        Desc {
            flags: NEXT,
            next: 1,
            ..one_desc(0x5000, 2)
        },
    );
    // The write flag of the descriptor that names the table is ignored (virtio 1.2 §2.7.5.3.2).
    bench.desc(
        TABLE,
        1,
        Desc {
            flags: INDIRECT | WRITE,
            ..one_desc(0x6000, 32)
        },
    );
    bench.desc(
        0x6000,
        0,
        Desc {
            flags: NEXT,
            next: 1,
            ..one_desc(0x7000, 3)
        },
    );
    bench.desc(
        0x6000,
        1,
        Desc {
            flags: WRITE,
            ..one_desc(0x8000, 4)
        },
    );
    bench.offer(0);
    let chain = bench.pop_chain();
    let lengths = |list: &[Segment]| list.iter().map(|part| part.bytes).collect::<Vec<_>>();
    assert_eq!(
        (lengths(chain.readable()), lengths(chain.writable())),
        (vec![2, 3], vec![4])
    );
}

#[test]
fn an_indirect_table_that_was_not_accepted_is_malformed() {
    let mut bench = Bench::new(0);
    bench.desc(
        TABLE,
        0,
        Desc {
            flags: INDIRECT,
            ..one_desc(0x6000, 16)
        },
    );
    bench.expect_malformed("indirect");
}

#[test]
fn an_index_that_jumps_is_reported_once_and_never_spins() {
    for jump in [SIZE + 1, 32_768, 65_535] {
        let mut bench = Bench::new(0);
        bench.desc(TABLE, 0, one_desc(0x5000, 4));
        bench.write_u16(AVAILABLE + 2, jump);
        for _ in 0..1000 {
            assert!(matches!(bench.ring.pop(), Popped::Empty), "{jump}");
            assert!(!bench.ring.resume_kicks(), "{jump}");
            assert!(!bench.ring.has_waiting(), "{jump}");
        }
        assert!(bench.interrupt.needs_reset(), "{jump}");
        assert_eq!(bench.irqfd.read().unwrap(), 1, "{jump}");
        // Whatever the driver writes now, only a reset helps.
        bench.write_u16(AVAILABLE + 2, 1);
        assert!(matches!(bench.ring.pop(), Popped::Empty), "{jump}");
    }
}

#[test]
fn a_whole_queue_of_chains_is_no_jump() {
    let mut bench = Bench::new(0);
    bench.desc(TABLE, 0, one_desc(0x5000, 4));
    (0..SIZE).for_each(|_| bench.offer(0));
    (0..SIZE).for_each(|_| drop(bench.pop_chain()));
    assert!(matches!(bench.ring.pop(), Popped::Empty));
}

#[test]
fn a_head_outside_the_table_breaks_the_ring() {
    let mut bench = Bench::new(0);
    bench.offer(SIZE);
    assert!(matches!(bench.ring.pop(), Popped::Empty));
    assert!(bench.interrupt.needs_reset());
    assert_eq!(bench.read_u16(USED + 2), 0, "nothing to give back");
}

#[test]
fn a_chain_that_comes_while_notifications_are_resumed_is_not_lost() {
    for features in [0, feature::RING_EVENT_IDX] {
        let mut bench = Bench::new(features);
        bench.desc(TABLE, 0, one_desc(0x5000, 4));
        bench.ring.pause_kicks();
        assert!(matches!(bench.ring.pop(), Popped::Empty));
        bench.offer(0);
        assert!(bench.ring.resume_kicks());
        let _ = bench.pop_chain();
        assert!(!bench.ring.resume_kicks());
        let avail_event = bench.read_u16(USED + 4 + 8 * u64::from(SIZE));
        assert_eq!(avail_event, u16::from(features != 0));
        assert_eq!(bench.read_u16(USED), 0, "notifications are wanted");
    }
}

#[test]
fn a_driver_is_interrupted_once_a_batch_and_only_if_it_wants() {
    let mut bench = Bench::new(0);
    bench.desc(TABLE, 0, one_desc(0x5000, 4));
    for (flags, interrupts) in [(0, 1), (1, 0)] {
        bench.write_u16(AVAILABLE, flags);
        for _ in 0..3 {
            bench.offer(0);
            let chain = bench.pop_chain();
            bench.ring.complete(chain, 0);
        }
        bench.ring.notify();
        bench.ring.notify();
        assert_eq!(bench.irqfd.read().unwrap_or(0), interrupts, "flags {flags}");
    }
}

#[test]
fn with_event_index_the_wanted_index_must_be_passed() {
    // Positions before and after 2^16 wraps, and an event index that is or is not among those given back.
    for start in [0_u16, 0xfffe] {
        for wanted in -2_i16..=3 {
            let mut bench = Bench::at_position(feature::RING_EVENT_IDX, start);
            bench.desc(TABLE, 0, one_desc(0x5000, 4));
            bench.write_u16(
                AVAILABLE + 4 + 2 * u64::from(SIZE),
                start.wrapping_add_signed(wanted),
            );
            for _ in 0..3 {
                bench.offer(0);
                let chain = bench.pop_chain();
                bench.ring.complete(chain, 0);
            }
            bench.ring.notify();
            let expected = u64::from((0..3).contains(&wanted));
            assert_eq!(
                bench.irqfd.read().unwrap_or(0),
                expected,
                "{start} {wanted}"
            );
        }
    }
}

#[test]
fn chains_put_back_are_popped_again() {
    let mut bench = Bench::new(0);
    for head in 0..4 {
        bench.desc(TABLE, head, one_desc(0x5000, 4));
        bench.offer(head);
    }
    let chains: Vec<Chain> = (0..4).map(|_| bench.pop_chain()).collect();
    let mut chains = chains.into_iter();
    let first = chains.next().unwrap();
    bench.ring.complete(first, 1);
    bench.ring.put_back(chains);
    let heads: Vec<u16> = (0..3).map(|_| bench.pop_chain().head()).collect();
    assert_eq!(heads, [1, 2, 3]);
}

#[test]
fn no_chain_is_given_back_twice_when_a_malformed_one_came_between() {
    let mut bench = Bench::new(0);
    bench.desc(TABLE, 0, one_desc(0x5000, 4));
    bench.desc(
        TABLE,
        1,
        Desc {
            flags: NEXT,
            next: 1,
            ..one_desc(0x5000, 4)
        },
    );
    bench.desc(TABLE, 2, one_desc(0x5000, 4));
    (0..3).for_each(|head| bench.offer(head));
    let before = bench.pop_chain();
    assert!(matches!(bench.ring.pop(), Popped::Malformed));
    let after = bench.pop_chain();
    bench.ring.put_back([before, after].into_iter());
    let again = bench.pop_chain();
    bench.ring.complete(again, 9);
    let given: HashSet<u16> = (0..3)
        .map(|slot| bench.read_u16(USED + 4 + 8 * slot))
        .collect();
    assert_eq!(
        (bench.read_u16(USED + 2), given),
        (3, HashSet::from([0, 1, 2]))
    );
}

#[test]
fn an_unused_queue_is_always_empty_and_touches_no_memory() {
    let mut bench = Bench::new(0);
    let queue = QueueStateV1::unused(SIZE)
        .to_queue(SIZE, &bench.mem)
        .unwrap();
    let mut ring = Ring::new(queue, bench.ring.context.clone());
    bench.ring = Ring::new(
        QueueStateV1::unused(SIZE)
            .to_queue(SIZE, &bench.mem)
            .unwrap(),
        ring.context.clone(),
    );
    let mut before = vec![0; 0x1000];
    bench.mem.read_slice(&mut before, GuestAddress(0)).unwrap();
    ring.pause_kicks();
    assert!(matches!(ring.pop(), Popped::Empty));
    assert!(!ring.resume_kicks());
    ring.notify();
    let mut after = vec![0; 0x1000];
    bench.mem.read_slice(&mut after, GuestAddress(0)).unwrap();
    assert_eq!(before, after);
}

/// What driver and device do by turns.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The driver offers a chain, which is malformed or not.
    Offer { is_malformed: bool },
    /// The device takes one.
    Pop,
    /// It gives the one back that it has had longest.
    Complete,
    /// It puts back as many as it took last.
    PutBack(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..8_u8).prop_map(|n| Step::Offer { is_malformed: n == 0 }),
        3 => Just(Step::Pop),
        2 => Just(Step::Complete),
        1 => (0..5_usize).prop_map(Step::PutBack),
    ];
    proptest::collection::vec(step, 0..80)
}

/// Both sides of a ring, and what each knows of it.
struct Model {
    bench: Bench,
    /// Heads that the driver has.
    free: VecDeque<u16>,
    /// Heads offered, in order, and those that came back.
    offered: Vec<u16>,
    given_back: Vec<u16>,
    held: VecDeque<Chain>,
    used_index: u16,
}

impl Model {
    fn at_position(position: u16) -> Self {
        Self {
            bench: Bench::at_position(feature::RING_EVENT_IDX, position),
            free: (0..SIZE).collect(),
            offered: Vec::new(),
            given_back: Vec::new(),
            held: VecDeque::new(),
            used_index: position,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Offer { is_malformed } => {
                let Some(head) = self.free.pop_front() else {
                    return;
                };
                let flags = if is_malformed { NEXT } else { 0 };
                let desc = Desc {
                    flags,
                    next: head,
                    ..one_desc(0x5000, 4)
                };
                self.bench.desc(TABLE, head, desc);
                self.bench.offer(head);
                self.offered.push(head);
            }
            Step::Pop => {
                if let Popped::Chain(chain) = self.bench.ring.pop() {
                    self.held.push_back(chain);
                }
            }
            Step::Complete => {
                if let Some(chain) = self.held.pop_front() {
                    self.bench.ring.complete(chain, 4);
                }
            }
            Step::PutBack(count) => {
                let kept = self.held.len().saturating_sub(count);
                let last = self.held.split_off(kept);
                self.bench.ring.put_back(last.into_iter());
            }
        }
        self.look();
    }

    /// The driver takes what has come back.
    fn look(&mut self) {
        while self.bench.read_u16(USED + 2) != self.used_index {
            let slot = u64::from(self.used_index % SIZE);
            let head = self.bench.read_u16(USED + 4 + 8 * slot);
            self.used_index = self.used_index.wrapping_add(1);
            self.given_back.push(head);
            self.free.push_back(head);
        }
    }
}

proptest! {
    /// Virtio 1.2 §2.7.13: the device gives back each chain once, and takes them in the order of the ring.
    #[test]
    fn every_chain_comes_back_once_wherever_the_indices_are(position: u16, steps in steps()) {
        let mut model = Model::at_position(position);
        for step in steps {
            model.take(step);
            prop_assert!(!model.bench.interrupt.needs_reset());
            let out = model.offered.len() - model.given_back.len();
            prop_assert!(out <= usize::from(SIZE) && model.held.len() <= out);
        }
        let waits = model.offered.len() - model.given_back.len() > model.held.len();
        prop_assert_eq!(model.bench.ring.has_waiting(), waits);
        for _ in 0..SIZE {
            model.take(Step::Pop);
        }
        prop_assert!(matches!(model.bench.ring.pop(), Popped::Empty));
        while !model.held.is_empty() {
            model.take(Step::Complete);
        }
        let sorted = |mut heads: Vec<u16>| {
            heads.sort_unstable();
            heads
        };
        prop_assert_eq!(sorted(model.offered), sorted(model.given_back));
    }

    /// Virtio 1.2 §2.7.7.2: an interrupt exactly if the index that the driver waits for was passed.
    #[test]
    fn an_interrupt_comes_exactly_when_the_wanted_index_is_passed(
        position: u16, batch in 1..=SIZE, wanted_after in 0..20_u16,
    ) {
        let mut bench = Bench::at_position(feature::RING_EVENT_IDX, position);
        let wanted = position.wrapping_add(wanted_after);
        bench.write_u16(AVAILABLE + 4 + 2 * u64::from(SIZE), wanted);
        for head in 0..batch {
            bench.desc(TABLE, head, one_desc(0x5000, 4));
            bench.offer(head);
            let chain = bench.pop_chain();
            bench.ring.complete(chain, 0);
        }
        bench.ring.notify();
        let is_passed = wanted_after < batch;
        prop_assert_eq!(bench.irqfd.read().is_ok(), is_passed);
        bench.ring.notify();
        prop_assert!(bench.irqfd.read().is_err(), "once");
    }
}

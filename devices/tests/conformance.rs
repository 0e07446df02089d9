//! What every virtio device has to bear, driven through its real register front: reset, a second start, save and
//! restore, and the rings of a hostile guest, after each of which it works again.

mod subjects;
mod support;

use std::sync::Arc;

use lightv_devices::virtio::device_status::bits;
use lightv_devices::virtio::mmio::reg;
use vm_memory::{Bytes, GuestAddress};

use subjects::{
    BalloonSubject, BlockSubject, ConsoleSubject, EntropySubject, NetSubject, StreamSubject,
    Subject, VsockSubject,
};
use support::{
    Desc, HIGH_RAM, INDIRECT, LOW_RAM, Machine, NEXT, RUNNING, WRITE, readable, writable,
};

/// One hostile act on queue `queue` of a running device.
type Attack = fn(&mut Machine, usize);
/// The same with its data.
type BoxedAttack = Box<dyn Fn(&mut Machine, usize)>;

/// Stands for the address of the queue's own table.
const OWN_TABLE: u64 = 0x1_0000;

fn chain_of(descs: &'static [Desc]) -> impl Fn(&mut Machine, usize) {
    move |machine, queue| {
        let table = machine.rings[queue].table;
        for (index, &desc) in (0..).zip(descs) {
            let address = match desc.address {
                OWN_TABLE => table,
                other => other,
            };
            machine.write_desc(table, index, Desc { address, ..desc });
        }
        machine.offer(queue, 0);
        machine.kick(queue);
        machine.serve_backend(2);
    }
}

const fn desc(address: u64, bytes: u32, flags: u16) -> Desc {
    Desc {
        address,
        bytes,
        flags,
        next: 1,
    }
}

/// Chains that no device can serve, or not wholly. None may break anything but itself.
fn hostile_chains() -> Vec<(&'static str, BoxedAttack)> {
    const LOOP: &[Desc] = &[Desc {
        address: 0x1000,
        bytes: 16,
        flags: NEXT,
        next: 0,
    }];
    const LOOP_OF_TWO: &[Desc] = &[
        desc(0x1000, 16, NEXT),
        Desc {
            address: 0x1000,
            bytes: 16,
            flags: NEXT | WRITE,
            next: 0,
        },
    ];
    const OUTSIDE: &[Desc] = &[desc(LOW_RAM, 16, NEXT), desc(LOW_RAM, 4096, WRITE)];
    const ACROSS_THE_HOLE: &[Desc] = &[
        desc(LOW_RAM - 8, 16, NEXT),
        desc(LOW_RAM - 1, 0xf000_0000, WRITE),
    ];
    const WRAPPING: &[Desc] = &[
        desc(u64::MAX - 0xff, 512, NEXT),
        desc(u64::MAX - 0xff, 512, WRITE),
    ];
    const ENDLESS: &[Desc] = &[desc(0, u32::MAX, WRITE)];
    const TWICE_ENDLESS: &[Desc] = &[desc(0, u32::MAX, NEXT | WRITE), desc(0, u32::MAX, WRITE)];
    const EMPTY: &[Desc] = &[desc(0x1000, 0, NEXT), desc(0x1000, 0, WRITE)];
    const EMPTY_READABLE: &[Desc] = &[desc(0x1000, 0, 0)];
    const NEXT_OUTSIDE: &[Desc] = &[Desc {
        address: 0x1000,
        bytes: 16,
        flags: NEXT,
        next: 0xffff,
    }];
    const WRITABLE_FIRST: &[Desc] = &[desc(0x1000, 16, NEXT | WRITE), desc(0x1000, 16, 0)];
    const DEVICE_WINDOW: &[Desc] = &[desc(0xd000_0000, 16, NEXT), desc(0xd000_0000, 16, WRITE)];
    const INDIRECT_OUTSIDE: &[Desc] = &[desc(HIGH_RAM - 16, 32, INDIRECT)];
    const INDIRECT_ODD: &[Desc] = &[desc(0x1000, 17, INDIRECT)];
    const INDIRECT_EMPTY: &[Desc] = &[desc(0x1000, 0, INDIRECT)];
    const INDIRECT_AND_NEXT: &[Desc] = &[desc(0x1000, 16, INDIRECT | NEXT), desc(0x1000, 16, 0)];
    const INDIRECT_HUGE: &[Desc] = &[desc(0x1000, 0xffff_fff0, INDIRECT)];
    // The queue's own table as indirect table: its first descriptor is indirect again.
    const INDIRECT_ITSELF: &[Desc] = &[desc(OWN_TABLE, 16, INDIRECT)];
    let list: [(&'static str, &'static [Desc]); 18] = [
        ("a chain that loops", LOOP),
        ("a loop of two", LOOP_OF_TWO),
        ("buffers outside RAM", OUTSIDE),
        ("buffers across the hole", ACROSS_THE_HOLE),
        ("buffers whose end wraps", WRAPPING),
        ("a buffer of 4 GiB", ENDLESS),
        ("more than 2^32 bytes", TWICE_ENDLESS),
        ("empty buffers", EMPTY),
        ("one empty buffer", EMPTY_READABLE),
        ("next outside the table", NEXT_OUTSIDE),
        ("readable after writable", WRITABLE_FIRST),
        ("buffers on device memory", DEVICE_WINDOW),
        ("indirect table outside RAM", INDIRECT_OUTSIDE),
        ("indirect table of odd length", INDIRECT_ODD),
        ("empty indirect table", INDIRECT_EMPTY),
        ("indirect with next", INDIRECT_AND_NEXT),
        ("huge indirect table", INDIRECT_HUGE),
        ("indirect in indirect", INDIRECT_ITSELF),
    ];
    list.into_iter()
        .map(|(name, descs)| (name, Box::new(chain_of(descs)) as BoxedAttack))
        .collect()
}

fn reset_gives_a_device_that_works(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    for round in 0..50 {
        machine.init();
        subject.assert_works(&mut machine);
        machine.set_status(0);
        assert_eq!(machine.status(), 0, "round {round}");
        assert!(!machine.wants_backend(), "an idle device watches nothing");
        assert!(
            machine.device.lock().unwrap().deactivate().is_empty(),
            "it has given its queues back"
        );
    }
    assert_eq!(machine.counters().guest_faults, 0);
}

fn nothing_is_written_after_a_reset(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    machine.init();
    let data = machine.put(&[0x11; 256]);
    for queue in 0..machine.rings.len() {
        machine.add(queue, &[readable(data, 64), writable(data + 64, 128)]);
    }
    machine.set_status(0);
    for queue in 0..machine.rings.len() {
        machine.kick(queue);
        support::process(&machine.device, queue);
        machine.serve_backend(1);
        assert_eq!(machine.take_used(queue), None);
    }
    assert_eq!(machine.get(data, 256), vec![0x11; 256]);
}

fn save_restore_save_is_equal(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    machine.init();
    subject.assert_works(&mut machine);
    for generation in 0..4 {
        let (transport, state) = machine.save();
        let (mem, rings) = (Arc::clone(&machine.mem), machine.rings.clone());
        let device = subject.restore(state.clone());
        machine = Machine::with_mem(device, mem, Some(&transport));
        machine.rings = rings;
        let again = machine.save();
        assert_eq!(
            (&again.0, &again.1),
            (&transport, &state),
            "generation {generation}"
        );
        let (mem, rings) = (Arc::clone(&machine.mem), machine.rings.clone());
        machine = Machine::with_mem(subject.restore(state), mem, Some(&transport));
        machine.rings = rings;
        assert_eq!(machine.status(), RUNNING);
        subject.assert_works(&mut machine);
    }
    machine.init();
    subject.assert_works(&mut machine);
}

fn an_untouched_or_half_started_device_is_saved_too(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    for stage in 0..3 {
        if stage == 1 {
            let features = machine.offered();
            machine.negotiate(features);
        } else if stage == 2 {
            machine.set_up_queue(0);
        }
        let (transport, state) = machine.save();
        let mem = Arc::clone(&machine.mem);
        let mut restored = Machine::with_mem(subject.restore(state.clone()), mem, Some(&transport));
        assert_eq!(restored.save(), (transport, state), "stage {stage}");
        restored.init();
        subject.assert_works(&mut restored);
        machine = Machine::new(subject.make());
        let features = machine.offered();
        machine.negotiate(features);
    }
}

fn requests_in_the_queue_at_a_save_are_served_after_the_restore(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    machine.init();
    let last = subject.served_queue(&machine);
    let address = machine.put(&[0; 256]);
    // Added, and the notification was lost with the saved machine.
    machine.add(last, &[readable(address, 64), writable(address + 64, 64)]);
    let (transport, state) = machine.save();
    let (mem, rings) = (Arc::clone(&machine.mem), machine.rings.clone());
    machine = Machine::with_mem(subject.restore(state), mem, Some(&transport));
    machine.rings = rings;
    assert!(machine.take_used(last).is_some());
    assert_ne!(machine.take_interrupts(), 0);
}

fn chains_in_indirect_tables_are_served(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    machine.init();
    let last = subject.served_queue(&machine);
    for length in [2, 16, 256] {
        let address = machine.put(&vec![0; 64 * length]);
        let buffer = |index: usize| {
            let address = address + 64 * index as u64;
            if index < length / 2 {
                readable(address, 64)
            } else {
                writable(address, 64)
            }
        };
        let buffers: Vec<_> = (0..length).map(buffer).collect();
        let head = machine.add_indirect(last, &buffers);
        machine.kick(last);
        let used = machine.take_used(last).map(|(used, _)| used);
        assert_eq!(used, Some(u32::from(head)), "{length}");
    }
    subject.assert_works(&mut machine);
}

fn hostile_chains_harm_nothing(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    for queue in 0..machine.rings.len() {
        for (name, attack) in hostile_chains() {
            machine.init();
            subject.use_all(&mut machine);
            attack(&mut machine, queue);
            assert!(!machine.interrupt.needs_reset(), "{name} on queue {queue}");
            assert!(
                machine.take_used(queue).is_some(),
                "{name} on queue {queue} is given back"
            );
            assert_eq!(
                machine.take_used(queue),
                None,
                "{name} on queue {queue}: once"
            );
            subject.assert_works(&mut machine);
        }
    }
}

fn an_index_that_jumps_needs_a_reset_and_no_more(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    for queue in 0..machine.rings.len() {
        for jump in [257, 32_768, 65_535] {
            machine.init();
            subject.use_all(&mut machine);
            machine.take_interrupts();
            let before = machine.counters().needs_resets;
            let index = machine.rings[queue].available_index.wrapping_add(jump);
            machine.set_available_index(queue, index);
            for _ in 0..100 {
                machine.kick(queue);
                machine.serve_backend(1);
            }
            assert_eq!(
                machine.status(),
                RUNNING | bits::DEVICE_NEEDS_RESET,
                "{queue} {jump}"
            );
            assert_eq!(machine.read32(reg::INTERRUPT_STATUS), 2, "{queue} {jump}");
            assert_eq!(
                machine.counters().needs_resets,
                before + 1,
                "{queue} {jump}: once"
            );
            assert!(machine.take_interrupts() <= 1, "{queue} {jump}");
            machine.init();
            subject.assert_works(&mut machine);
        }
    }
}

fn bad_rings_end_in_needs_reset(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    let attacks: [Attack; 8] = [
        |machine, queue| machine.rings[queue].table += 1,
        |machine, queue| machine.rings[queue].available += 1,
        |machine, queue| machine.rings[queue].used += 2,
        |machine, queue| machine.rings[queue].table = LOW_RAM - 16,
        |machine, queue| machine.rings[queue].table = 0xffff_ffff_ffff_f000,
        |machine, queue| machine.rings[queue].table = machine.rings[queue].used,
        |machine, queue| machine.rings[queue].table = 0xd000_0000,
        |machine, queue| machine.rings[queue].table = machine.rings[queue].available,
    ];
    for queue in 0..machine.rings.len() {
        for (number, attack) in (0..).zip(attacks) {
            let good = machine.rings[queue];
            let features = machine.offered();
            machine.negotiate(features);
            attack(&mut machine, queue);
            machine.set_up_queue(queue);
            machine.set_status(RUNNING);
            assert_eq!(
                machine.status(),
                RUNNING | bits::DEVICE_NEEDS_RESET,
                "{queue} {number}"
            );
            machine.kick(queue);
            machine.rings[queue] = good;
            machine.init();
            subject.assert_works(&mut machine);
        }
    }
}

fn driver_ok_without_queues_and_early_kicks_harm_nothing(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    for queue in 0..=machine.rings.len() {
        machine.kick(queue);
    }
    let features = machine.offered();
    machine.negotiate(features);
    machine.kick(0);
    machine.set_status(RUNNING);
    assert_eq!(machine.status(), RUNNING);
    for queue in 0..=machine.rings.len() {
        machine.kick(queue);
        support::process(&machine.device, queue);
    }
    machine.serve_backend(2);
    let (transport, state) = machine.save();
    let mem = Arc::clone(&machine.mem);
    machine = Machine::with_mem(subject.restore(state), mem, Some(&transport));
    assert_eq!(machine.status(), RUNNING);
    machine.init();
    subject.assert_works(&mut machine);
}

fn accesses_of_any_width_harm_nothing(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    machine.init();
    for offset in 0..0x1000 {
        for width in [1_usize, 2, 4, 8] {
            machine.front.read(offset, &mut vec![0; width]);
            let is_register = width == 4 && offset < reg::CONFIG && offset % 4 == 0;
            if !is_register {
                machine.front.write(offset, &vec![0xff; width]);
            }
        }
    }
    assert_eq!(machine.status(), RUNNING);
    subject.assert_works(&mut machine);
    for offset in (0..reg::CONFIG).step_by(4) {
        for value in [0, 1, 0xff, u32::MAX] {
            machine.write32(offset, value);
        }
    }
    machine.init();
    subject.assert_works(&mut machine);
}

fn a_header_that_changes_under_way_harms_nothing(subject: &mut dyn Subject) {
    let mut machine = Machine::new(subject.make());
    machine.init();
    let mem = Arc::clone(&machine.mem);
    let last = subject.served_queue(&machine);
    let address = machine.put(&[0; 1024]);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let table = machine.rings[last].table;
    let is_stopped = Arc::clone(&stop);
    let flipper = std::thread::spawn(move || {
        let mut value = 0_u64;
        while !is_stopped.load(std::sync::atomic::Ordering::Relaxed) {
            value = value
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            for at in [
                address,
                address + 8,
                table,
                table + 8,
                table + 16,
                table + 24,
            ] {
                mem.write_obj(value.rotate_left(17), GuestAddress(at))
                    .unwrap();
            }
        }
    });
    for _ in 0..2000 {
        machine.add(last, &[readable(address, 16), writable(address + 512, 512)]);
        machine.kick(last);
        while machine.take_used(last).is_some() {}
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flipper.join().unwrap();
    machine.init();
    subject.assert_works(&mut machine);
}

/// All of the above for one device.
macro_rules! conformance {
    ($device:ident, $subject:expr) => {
        conformance!($device, $subject;
            reset_gives_a_device_that_works
            nothing_is_written_after_a_reset
            save_restore_save_is_equal
            an_untouched_or_half_started_device_is_saved_too
            requests_in_the_queue_at_a_save_are_served_after_the_restore
            chains_in_indirect_tables_are_served
            hostile_chains_harm_nothing
            an_index_that_jumps_needs_a_reset_and_no_more
            bad_rings_end_in_needs_reset
            driver_ok_without_queues_and_early_kicks_harm_nothing
            accesses_of_any_width_harm_nothing
            a_header_that_changes_under_way_harms_nothing
        );
    };
    ($device:ident, $subject:expr; $($case:ident)*) => {
        mod $device {
            use super::*;
            $(
                #[test]
                fn $case() {
                    super::$case(&mut $subject);
                }
            )*
        }
    };
}

conformance!(block, BlockSubject::new());
conformance!(net, NetSubject::with(1));
conformance!(net_with_queue_pairs, NetSubject::with(2));
conformance!(net_in_user_space, StreamSubject::default());
conformance!(balloon, BalloonSubject);
conformance!(entropy, EntropySubject);
conformance!(console, ConsoleSubject::default());
conformance!(vsock, VsockSubject::new());

use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::test_support::{Buffer, HIGH_RAM, LOW_RAM, Machine, readable, writable};
use crate::virtio::mmio::reg;

const PAGE: u64 = PAGE_BYTES;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const HINTING: usize = 3;
const REPORTING: usize = 4;

/// Notes what was given back.
#[derive(Debug, Default)]
struct Host {
    calls: Mutex<Vec<Vec<MemoryRange>>>,
    is_full: Mutex<bool>,
}

impl Reclaim for Host {
    fn release(&self, ranges: &[MemoryRange]) -> io::Result<()> {
        self.calls.lock().unwrap().push(ranges.to_vec());
        if *self.is_full.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Ok(())
    }
}

impl Host {
    /// Ranges as page numbers and counts, since the last look.
    fn take(&self) -> Vec<(u64, u64)> {
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        let ranges = calls.into_iter().flatten();
        ranges
            .map(|range| (range.address / PAGE, range.bytes / PAGE))
            .collect()
    }
}

fn options(host: &Arc<Host>) -> BalloonOptions {
    BalloonOptions {
        id: "balloon".into(),
        target_pages: 512,
        ram_pages: 4352,
        deflate_on_oom: true,
        polling_interval_s: 1,
        has_hinting: true,
        has_reporting: true,
        reclaim: Arc::<Host>::clone(host),
    }
}

struct Trial {
    machine: Machine,
    host: Arc<Host>,
    /// The device too, by which the monitor speaks to it.
    balloon: Arc<Mutex<Balloon>>,
}

/// The same device for the front and for the test.
#[derive(Debug)]
struct Shared(
    Arc<Mutex<Balloon>>,
    Arc<Counters>,
    Arc<LiveConfig>,
    Vec<u16>,
);

impl VirtioDevice for Shared {
    fn id(&self) -> &'static str {
        "balloon"
    }
    fn counters(&self) -> &Arc<Counters> {
        &self.1
    }
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }
    fn features(&self) -> u64 {
        self.0.lock().unwrap().features()
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.3
    }
    fn config(&self) -> &[u8] {
        &[]
    }
    fn live_config(&self) -> Option<&Arc<LiveConfig>> {
        Some(&self.2)
    }
    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        self.0.lock().unwrap().activate(env)
    }
    fn finish(&mut self, _: &dyn Fn() -> bool) {}
    fn deactivate(&mut self) -> Vec<Queue> {
        self.0.lock().unwrap().deactivate()
    }
    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        self.0.lock().unwrap().process_queue(index)
    }
    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn wants_backend(&self) -> bool {
        self.0.lock().unwrap().wants_backend()
    }
    fn process_backend(&mut self) -> Result<(), HostFault> {
        self.0.lock().unwrap().process_backend()
    }
    fn save(&self) -> DeviceState {
        self.0.lock().unwrap().save()
    }
}

impl Trial {
    fn with(change: impl FnOnce(&mut BalloonOptions)) -> Self {
        let host = Arc::new(Host::default());
        let mut options = options(&host);
        change(&mut options);
        let balloon = Balloon::new(options).unwrap();
        let (counters, config, sizes) = (
            Arc::clone(&balloon.counters),
            Arc::clone(&balloon.config),
            balloon.queue_sizes.clone(),
        );
        let balloon = Arc::new(Mutex::new(balloon));
        let shared = Shared(Arc::clone(&balloon), counters, config, sizes);
        let mut machine = Machine::new(Box::new(shared));
        machine.init();
        Self {
            machine,
            host,
            balloon,
        }
    }

    fn new() -> Self {
        Self::with(|_| {})
    }

    fn pfns(&mut self, pfns: &[u32]) -> Buffer {
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        readable(
            self.machine.put(&bytes),
            u32::try_from(bytes.len()).unwrap(),
        )
    }

    fn inflate(&mut self, pfns: &[u32]) -> Vec<(u64, u64)> {
        let buffer = self.pfns(pfns);
        assert_eq!(self.machine.request(INFLATE, &[buffer]), 0);
        self.host.take()
    }

    fn field(&mut self, index: u64) -> u32 {
        self.machine.read32(reg::CONFIG + 4 * index)
    }

    fn report(&mut self, stats: &[(u16, u64)]) -> Buffer {
        let bytes: Vec<u8> = stats
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        readable(
            self.machine.put(&bytes),
            u32::try_from(bytes.len()).unwrap(),
        )
    }

    fn value(&self, tag: u16) -> Option<u64> {
        self.balloon
            .lock()
            .unwrap()
            .facts()
            .unwrap()
            .report
            .get(tag)
    }

    /// The guest says `told` and names 2 MiB from page `page` on; what goes back to the host.
    fn hint(&mut self, told: Option<u32>, page: u64) -> Vec<(u64, u64)> {
        if let Some(told) = told {
            let buffer = readable(self.machine.put(&told.to_le_bytes()), 4);
            self.machine.request(HINTING, &[buffer]);
        }
        self.machine
            .request(HINTING, &[writable(page * PAGE, 2 << 20)]);
        self.host.take()
    }

    fn faults(&self) -> u64 {
        self.machine.counters().guest_faults
    }
}

#[test]
fn pages_are_given_back_in_order_as_ranges_and_each_once() {
    let mut trial = Trial::new();
    assert_eq!(
        trial.inflate(&[9, 8, 7, 5, 6, 20, 7, 21]),
        [(5, 5), (20, 2)]
    );
    assert_eq!(trial.inflate(&[7; 1000]), [(7, 1)]);
    // The last page of low RAM and the first of high RAM are no neighbours.
    let (low, high) = (LOW_RAM / PAGE - 1, HIGH_RAM / PAGE);
    let pfns = [low, high].map(|pfn| u32::try_from(pfn).unwrap());
    assert_eq!(trial.inflate(&pfns), [(low, 1), (high, 1)]);
    assert_eq!(trial.faults(), 0);
}

#[test]
fn pages_outside_ram_are_left_out_and_the_others_are_not() {
    let mut trial = Trial::new();
    let past = u32::try_from(LOW_RAM / PAGE).unwrap();
    assert_eq!(
        trial.inflate(&[u32::MAX, 3, past, past + 1, 0]),
        [(0, 1), (3, 1)]
    );
    assert_eq!(trial.faults(), 1);
    assert_eq!(trial.inflate(&[u32::MAX; 256]), []);
    assert_eq!(trial.faults(), 2);
}

#[test]
fn arrays_that_are_too_long_partial_empty_or_elsewhere_give_nothing_back() {
    let mut trial = Trial::new();
    let array = trial.machine.put(&vec![1; 4 * 4097]);
    let address = |bytes| readable(array, bytes);
    for (number, buffers) in [
        &[address(4 * 4097)][..],
        &[address(5)],
        &[address(3)],
        &[address(0)],
        &[writable(array, 8)],
        &[readable(LOW_RAM - 2, 4)],
        &[readable(u64::MAX - 3, 4)],
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(trial.machine.request(INFLATE, buffers), 0);
        assert_eq!(trial.host.take(), [], "{number}");
        assert_eq!(trial.faults(), number as u64 + 1, "{number}");
    }
    // An array in pieces is one array, and the longest is served whole.
    let pfns: Vec<u32> = (0..4096).rev().collect();
    let Buffer { address, .. } = trial.pfns(&pfns);
    let pieces = [readable(address, 6), readable(address + 6, 4 * 4096 - 6)];
    assert_eq!(trial.machine.request(INFLATE, &pieces), 0);
    assert_eq!(trial.host.take(), [(0, 4096)]);
    assert_eq!(trial.faults(), 7);
}

#[test]
fn a_turn_is_bounded_and_its_chains_come_back_after_the_host_has_its_pages() {
    let mut trial = Trial::new();
    // Every other page: no two are neighbours.
    let pfns: Vec<u32> = (0..1024).map(|pfn| 2 * pfn).collect();
    let buffer = trial.pfns(&pfns);
    for _ in 0..10 {
        trial.machine.add(INFLATE, &[buffer]);
    }
    let progress = trial
        .balloon
        .lock()
        .unwrap()
        .process_queue(INFLATE)
        .unwrap();
    assert_eq!(progress, Progress::More);
    assert_eq!(trial.host.take().len(), 1024);
    let used = std::iter::from_fn(|| trial.machine.take_used(INFLATE));
    assert_eq!(used.count(), 4, "4096 ranges");
    trial.machine.kick(INFLATE);
    let used = std::iter::from_fn(|| trial.machine.take_used(INFLATE));
    assert_eq!(used.count(), 6);
    for _ in 0..200 {
        trial.machine.add(DEFLATE, &[buffer]);
    }
    let progress = trial
        .balloon
        .lock()
        .unwrap()
        .process_queue(DEFLATE)
        .unwrap();
    assert_eq!(progress, Progress::More);
    let used = std::iter::from_fn(|| trial.machine.take_used(DEFLATE));
    assert_eq!(used.count(), BALLOON_CHAINS_PER_TURN);
    let _ = trial.host.take();
}

#[test]
fn what_the_host_does_not_take_is_told_and_the_guest_goes_on() {
    let mut trial = Trial::new();
    *trial.host.is_full.lock().unwrap() = true;
    let buffer = trial.pfns(&[1]);
    trial.machine.add(INFLATE, &[buffer]);
    let failure = trial.balloon.lock().unwrap().process_queue(INFLATE);
    assert_eq!(failure.unwrap_err().operation, HostOperation::ReleaseMemory);
    assert!(trial.machine.take_used(INFLATE).is_some());
    *trial.host.is_full.lock().unwrap() = false;
    trial.host.take();
    assert_eq!(trial.inflate(&[2]), [(2, 1)]);
    assert_eq!(trial.machine.counters().host_faults, 1);
}

#[test]
fn a_new_target_is_read_with_another_generation_and_the_actual_size_is_the_drivers() {
    let mut trial = Trial::new();
    let generation = trial.machine.read32(reg::CONFIG_GENERATION);
    assert_eq!(
        (trial.field(0), trial.field(1), trial.field(2)),
        (512, 0, 0)
    );
    trial.balloon.lock().unwrap().set_target(1024).unwrap();
    assert_eq!(trial.field(0), 1024);
    assert_ne!(trial.machine.read32(reg::CONFIG_GENERATION), generation);
    for (field, value) in [(0, 1), (1, 77), (2, 5)] {
        trial.machine.write32(reg::CONFIG + 4 * field, value);
    }
    assert_eq!(
        (trial.field(0), trial.field(1), trial.field(2)),
        (1024, 77, 0)
    );
    assert_eq!(trial.machine.counters().ignored_accesses, 2);
    let facts = |trial: &Trial| trial.balloon.lock().unwrap().facts().unwrap();
    assert_eq!(
        (facts(&trial).target_pages, facts(&trial).actual_pages),
        (1024, 77)
    );
    trial.machine.write32(reg::CONFIG + 4, u32::MAX);
    assert_eq!(facts(&trial).actual_pages, 4352, "no more than RAM");
    let refused = trial.balloon.lock().unwrap().set_target(4353);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .starts_with("Amount of pages")
    );
    assert_eq!(facts(&trial).target_pages, 1024);
}

#[test]
fn the_last_report_counts_and_its_buffer_goes_back_when_the_next_is_due() {
    let mut trial = Trial::new();
    assert!(!trial.machine.wants_backend());
    let first = trial.report(&[(0, 1), (4, 400), (4, 401), (99, 9), (0xffff, 9)]);
    trial.machine.add(STATS, &[first]);
    trial.machine.kick(STATS);
    assert_eq!(trial.machine.take_used(STATS), None, "held");
    assert!(trial.machine.wants_backend());
    assert_eq!(
        (trial.value(0), trial.value(4), trial.value(5)),
        (Some(1), Some(401), None)
    );
    trial
        .balloon
        .lock()
        .unwrap()
        .set_polling_interval(2)
        .unwrap();
    assert!(
        trial.machine.take_used(STATS).is_some(),
        "asked for at once"
    );
    assert!(!trial.machine.wants_backend());
    let second = trial.report(&[(5, 7)]);
    trial.machine.add(STATS, &[second]);
    trial.machine.kick(STATS);
    assert_eq!(
        (trial.value(0), trial.value(5)),
        (None, Some(7)),
        "of the last report alone"
    );
    // A second buffer: the older one goes back.
    trial.machine.add(STATS, &[first]);
    trial.machine.kick(STATS);
    assert!(trial.machine.take_used(STATS).is_some());
    assert_eq!(trial.machine.take_used(STATS), None);
    assert_eq!(trial.value(0), Some(1));
    assert_eq!(trial.faults(), 0);
}

#[test]
fn reports_that_are_huge_partial_or_elsewhere_are_read_as_far_as_they_make_sense() {
    let mut trial = Trial::new();
    let entries: Vec<(u16, u64)> = (0..70)
        .map(|number| (if number < 64 { 3 } else { 5 }, number))
        .collect();
    let Buffer { address, .. } = trial.report(&entries);
    trial.machine.add(STATS, &[readable(address, 1 << 20)]);
    trial.machine.kick(STATS);
    assert_eq!(
        (trial.value(3), trial.value(5)),
        (Some(63), None),
        "64 entries"
    );
    for bytes in [0, 1, 9] {
        assert_eq!(trial.machine.request(STATS, &[readable(address, bytes)]), 0);
    }
    assert_eq!(
        trial.machine.request(STATS, &[readable(LOW_RAM - 4, 10)]),
        0
    );
    assert_eq!(trial.machine.request(STATS, &[writable(address, 10)]), 0);
    assert_eq!((trial.faults(), trial.value(3)), (5, Some(63)));
    // 19 bytes are one entry.
    trial.machine.add(STATS, &[readable(address, 19)]);
    trial.machine.kick(STATS);
    assert_eq!(trial.value(3), Some(0));
}

#[test]
fn statistics_are_neither_switched_on_nor_off() {
    let trial = Trial::with(|options| options.polling_interval_s = 0);
    let mut balloon = trial.balloon.lock().unwrap();
    assert_eq!(balloon.facts().unwrap_err(), BalloonError::NoStatistics);
    assert_eq!(
        balloon.set_polling_interval(1).unwrap_err(),
        BalloonError::StatisticsSwitch
    );
    assert_eq!(balloon.set_polling_interval(0), Ok(()));
    let trial = Trial::new();
    let mut balloon = trial.balloon.lock().unwrap();
    assert_eq!(
        balloon.set_polling_interval(0).unwrap_err(),
        BalloonError::StatisticsSwitch
    );
}

#[test]
fn the_timer_asks_for_statistics() {
    let mut trial = Trial::new();
    let report = trial.report(&[(4, 1)]);
    trial.machine.add(STATS, &[report]);
    trial.machine.kick(STATS);
    // Before it has fired nothing happens, nor does the device wait.
    trial.machine.serve_backend(1);
    assert_eq!(trial.machine.take_used(STATS), None);
    while trial.machine.take_used(STATS).is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        trial.machine.serve_backend(1);
    }
    assert_ne!(trial.machine.take_interrupts(), 0);
}

#[test]
fn queues_are_numbered_as_the_driver_accepts_them() {
    let mut trial = Trial::new();
    let features = trial.machine.offered() & !feature::STATS_VQ & !feature::FREE_PAGE_HINT;
    trial.machine.init_with(features);
    assert_eq!(trial.machine.request(2, &[writable(2 << 20, 2 << 20)]), 0);
    assert_eq!(trial.host.take(), [(512, 512)]);
    let buffer = trial.report(&[(0, 1)]);
    for unused in [3, 4] {
        trial.machine.add(unused, &[buffer]);
        trial.machine.kick(unused);
        assert_eq!(trial.machine.take_used(unused), None);
    }
}

#[test]
fn free_pages_that_are_reported_are_given_back_if_they_are_pages_of_ram() {
    let mut trial = Trial::new();
    let buffers = [
        writable(4 << 20, 2 << 20),
        writable(5 << 20, 4096),
        writable((8 << 20) + 1, 4096),
        writable(9 << 20, 4095),
        writable(LOW_RAM - PAGE, 8192),
        writable(u64::MAX - 4095, 4096),
        writable(HIGH_RAM, 4096),
        writable(0, 0xf000_0000),
    ];
    assert_eq!(trial.machine.request(REPORTING, &buffers), 0);
    assert_eq!(trial.host.take(), [(1024, 512), (HIGH_RAM / PAGE, 1)]);
    assert_eq!(trial.faults(), 1);
    let counters = trial.balloon.lock().unwrap().counters.balloon().snapshot();
    assert_eq!(
        (
            counters.reports,
            counters.report_bytes,
            counters.report_fails
        ),
        (8, (2 << 20) + 8192, 5)
    );
    // What a chain names beyond its limit stays.
    let buffers = vec![writable(0, u32::try_from(LOW_RAM).unwrap()); 20];
    trial.machine.request(REPORTING, &buffers);
    let counters = trial.balloon.lock().unwrap().counters.balloon().snapshot();
    assert_eq!(counters.report_fails, 5 + 4, "16 times 16 MiB");
}

#[test]
fn a_run_of_hinting_ends_by_itself_or_when_it_is_told_to() {
    let mut trial = Trial::new();
    let state = |trial: &Trial| {
        let state = trial.balloon.lock().unwrap().hinting_state().unwrap();
        (state.host_cmd, state.guest_cmd)
    };
    assert_eq!(state(&trial), (0, None));
    assert_eq!(trial.hint(None, 512), [], "no run");
    trial.balloon.lock().unwrap().start_hinting(true).unwrap();
    assert_eq!((trial.field(2), state(&trial)), (2, (2, None)));
    assert_eq!(trial.hint(None, 512), [], "the driver has not begun");
    assert_eq!(trial.hint(Some(2), 512), [(512, 512)]);
    trial.machine.take_interrupts();
    assert_eq!(trial.hint(Some(0), 512), [], "it is through");
    assert_eq!((trial.field(2), state(&trial)), (1, (1, Some(0))));
    assert_ne!(trial.machine.read32(reg::INTERRUPT_STATUS) & 2, 0);

    trial.balloon.lock().unwrap().start_hinting(false).unwrap();
    assert_eq!(trial.hint(Some(3), 512), [(512, 512)]);
    let _ = trial.hint(Some(0), 512);
    assert_eq!(
        (trial.field(2), state(&trial)),
        (3, (3, Some(0))),
        "it is kept open"
    );
    trial.balloon.lock().unwrap().stop_hinting().unwrap();
    assert_eq!(trial.field(2), 1);
    // A late page of a run that has ended, and the end of an old run within a new one.
    assert_eq!(trial.hint(Some(3), 512), []);
    trial.balloon.lock().unwrap().start_hinting(true).unwrap();
    assert_eq!(trial.hint(Some(3), 512), []);
    assert_eq!(trial.hint(Some(0), 512), []);
    assert_eq!(state(&trial), (4, Some(0)));
    for bytes in [1, 3, 5, 8] {
        let address = trial.machine.put(&[0; 8]);
        trial.machine.request(HINTING, &[readable(address, bytes)]);
    }
    assert_eq!(trial.faults(), 4);
    let mut balloon = trial.balloon.lock().unwrap();
    balloon.hinting.0.last_run = u32::MAX;
    balloon.start_hinting(true).unwrap();
    assert_eq!(
        balloon.hinting_state().unwrap().host_cmd,
        2,
        "0 and 1 are no runs"
    );
    balloon.options.has_hinting = false;
    let refused = balloon.start_hinting(true).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Attempting to use hinting when not enabled"
    );
    assert_eq!(balloon.stop_hinting().unwrap_err(), refused);
}

#[test]
fn a_report_waits_through_a_save_and_is_read_again() {
    let mut trial = Trial::new();
    let report = trial.report(&[(4, 400)]);
    trial.machine.add(STATS, &[report]);
    trial.machine.kick(STATS);
    trial.machine.write32(reg::CONFIG + 4, 9);
    trial.balloon.lock().unwrap().start_hinting(true).unwrap();
    let (transport, state) = trial.machine.save();
    let DeviceState::Balloon(state) = state else {
        panic!("{state:?}")
    };
    assert_eq!(state.stats, [stats::StatV1 { tag: 4, value: 400 }]);
    let balloon = Balloon::new(options(&trial.host)).unwrap();
    let balloon = balloon.with_state(&state).unwrap();
    let mem = Arc::clone(&trial.machine.mem);
    mem.write_obj(401_u64.to_le(), GuestAddress(report.address + 2))
        .unwrap();
    let mut restored = Machine::with_mem(Box::new(balloon), mem, Some(&transport));
    restored.rings = trial.machine.rings.clone();
    assert!(
        restored.wants_backend(),
        "the buffer is there to be given back"
    );
    assert_eq!(restored.take_used(STATS), None);
    assert_eq!(restored.read32(reg::CONFIG + 4), 9);
    assert_eq!(restored.read32(reg::CONFIG + 8), 2);
    let DeviceState::Balloon(again) = restored.save().1 else {
        panic!()
    };
    assert_eq!(again.stats, [stats::StatV1 { tag: 4, value: 401 }]);
}

#[test]
fn impossible_states_are_refused() {
    let host = Arc::new(Host::default());
    let good = BalloonStateV1 {
        actual_pages: u32::MAX,
        hinting: HintingStateV1 {
            host_cmd: 7,
            guest_cmd: Some(9),
            last_run: 7,
            acknowledge_on_stop: true,
        },
        stats: vec![stats::StatV1 { tag: 15, value: 1 }],
    };
    let restore = |state: &BalloonStateV1| Balloon::new(options(&host)).unwrap().with_state(state);
    assert!(restore(&good).is_ok());
    let mut bad = good.clone();
    bad.hinting.last_run = 6;
    assert!(restore(&bad).is_err());
    for stats in [vec![(16, 1)], vec![(3, 1), (3, 2)]] {
        let mut bad = good.clone();
        bad.stats = stats
            .into_iter()
            .map(|(tag, value)| stats::StatV1 { tag, value })
            .collect();
        let text = restore(&bad).unwrap_err().to_string();
        assert!(
            text.contains("balloon") && text.contains("statistics"),
            "{text}"
        );
    }
}

#[test]
fn a_driver_that_was_reset_leaves_nothing_behind() {
    let mut trial = Trial::new();
    let report = trial.report(&[(4, 400)]);
    trial.machine.add(STATS, &[report]);
    trial.machine.kick(STATS);
    trial.machine.write32(reg::CONFIG + 4, 9);
    trial.balloon.lock().unwrap().start_hinting(true).unwrap();
    let _ = trial.hint(Some(2), 512);
    trial.machine.set_status(0);
    trial.balloon.lock().unwrap().forget_driver();
    trial.machine.init();
    assert_eq!(
        (trial.field(0), trial.field(1), trial.field(2)),
        (512, 0, 0)
    );
    assert_eq!(trial.value(4), None);
    trial.balloon.lock().unwrap().start_hinting(true).unwrap();
    assert_eq!(trial.field(2), 3);
}

#[test]
fn what_is_offered_follows_from_the_options() {
    let host = Arc::new(Host::default());
    let make = |set: &dyn Fn(&mut BalloonOptions)| {
        let mut options = options(&host);
        options.deflate_on_oom = false;
        options.polling_interval_s = 0;
        options.has_hinting = false;
        options.has_reporting = false;
        set(&mut options);
        let balloon = Balloon::new(options).unwrap();
        (
            balloon.features() & !ring_feature::COMMON,
            balloon.queue_sizes().len(),
        )
    };
    // Bits of virtio 1.2 §5.5.3; never MUST_TELL_HOST (0) nor PAGE_POISON (4).
    assert_eq!(make(&|_| {}), (0, 2));
    assert_eq!(make(&|options| options.polling_interval_s = 1), (2, 3));
    assert_eq!(make(&|options| options.deflate_on_oom = true), (4, 2));
    assert_eq!(make(&|options| options.has_hinting = true), (8, 3));
    assert_eq!(make(&|options| options.has_reporting = true), (32, 3));
}

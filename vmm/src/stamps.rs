//! When each step of a start was done, for `--timings`. Without that flag a stamp is one comparison.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use lightv_api::timings::{Mark, StartTimings, StepFaults, Touched};

use crate::event::{Event, EventSender};
use crate::lock::lock;
use crate::report;
use crate::sink;
use crate::sys::file::StandardStream;
use crate::sys::process::{monotonic_ns, page_faults};

/// The steps of a start, boot and restore alike; each stamp is the end of its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Restore: the image is open and proved. Boot: the configuration is proved and the kernel read.
    ImageLoad,
    /// Limits are set; KVM's VM has memory and interrupt controllers.
    Sandbox,
    /// Disks and taps are open; devices and vCPUs have their state.
    Resources,
    /// The first byte from the guest.
    Process,
}

impl Step {
    /// As in metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::ImageLoad => "image_load",
            Self::Sandbox => "sandbox",
            Self::Resources => "resources",
            Self::Process => "process",
        }
    }
}

/// Where the timings go.
#[derive(Debug, Clone)]
pub enum TimingsSink {
    /// One line of JSON on standard error.
    Stderr,
    /// One line of JSON into a file.
    File(PathBuf),
    /// To the program around us, which prints them as it likes.
    Call(fn(&StartTimings)),
    /// To the metrics, for whoever asks: that there are none is no news.
    Keep(fn(&StartTimings)),
}

impl TimingsSink {
    /// The file, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            _ => None,
        }
    }
}

/// Stamps of one start.
#[derive(Debug)]
pub struct Stamps {
    way: &'static str,
    caller_ns: Option<u64>,
    main_ns: u64,
    sink: Option<TimingsSink>,
    steps: Mutex<Vec<(Step, u64)>>,
    marks: Mutex<Vec<Stamp>>,
    /// Of a profile: page faults of the process up to the end of each step, by its name.
    faults: Option<Mutex<Vec<(&'static str, u64)>>>,
    has_output: AtomicBool,
    /// Who writes the report: a vCPU must not open a file.
    reporter: OnceLock<EventSender>,
}

/// A mark.
#[derive(Debug)]
struct Stamp {
    thread: String,
    name: String,
    ns: u64,
}

impl Stamp {
    /// The calling thread has done `name` just now.
    fn now(name: &str) -> Self {
        Self {
            thread: thread::current().name().unwrap_or_default().to_owned(),
            name: name.to_owned(),
            ns: monotonic_ns(),
        }
    }
}

/// Guest marks that are kept, so that a guest cannot grow the list.
const GUEST_MARKS_MAX: usize = 64;

impl Stamps {
    /// Stamps of a start that is `way` (`boot`, `restore`), began in its caller at `caller_ns` and in `main` at
    /// `main_ns` (CLOCK_MONOTONIC). Without a sink nothing is recorded.
    #[must_use]
    pub fn new(
        way: &'static str,
        main_ns: u64,
        caller_ns: Option<u64>,
        sink: Option<TimingsSink>,
    ) -> Self {
        Self {
            way,
            caller_ns,
            main_ns,
            has_output: AtomicBool::new(sink.is_none()),
            sink,
            steps: Mutex::default(),
            marks: Mutex::default(),
            faults: None,
            reporter: OnceLock::new(),
        }
    }

    /// The same for a profile: page faults are counted too, up to the guest's first instruction. The thread that builds the
    /// machine must not be confined yet.
    #[must_use]
    pub fn for_profile(mut self) -> Self {
        self.faults = Some(Mutex::new(vec![("spawn", page_faults())]));
        self
    }

    /// Whether the start is profiled.
    #[must_use]
    pub const fn is_profile(&self) -> bool {
        self.faults.is_some()
    }

    /// Page faults of the process in each step of a profile.
    #[must_use]
    pub fn faults(&self) -> Vec<StepFaults> {
        let faults = self.faults.as_ref().map(lock);
        let mut before = 0;
        let faults = faults.iter().flat_map(|faults| faults.iter());
        faults
            .map(|(step, until)| StepFaults {
                step: (*step).to_owned(),
                faults: until.saturating_sub(std::mem::replace(&mut before, *until)),
            })
            .collect()
    }

    /// There is a loop, which [writes the report](Self::write_report) when it is told to.
    pub fn report_to(&self, events: EventSender) {
        let _ = self.reporter.set(events);
    }

    /// `step` is done.
    pub fn step(&self, step: Step) {
        if self.sink.is_some() {
            let now = monotonic_ns();
            lock(&self.steps).push((step, now));
        }
        // The last one is stamped by a vCPU's thread, which may not ask.
        if let Some(faults) = self.faults.as_ref().filter(|_| step != Step::Process) {
            lock(faults).push((step.name(), page_faults()));
        }
    }

    /// `name` is done, inside a step.
    pub fn mark(&self, name: &str) {
        if self.sink.is_some() {
            let stamp = Stamp::now(name);
            lock(&self.marks).push(stamp);
        }
    }

    /// `thread` has done each of `marks` at its time of CLOCK_MONOTONIC, in nanoseconds.
    pub fn marks_at(&self, thread: &str, marks: &[(&str, u64)]) {
        if self.sink.is_some() {
            let marks = marks.iter().map(|(name, ns)| Stamp {
                thread: thread.to_owned(),
                name: (*name).to_owned(),
                ns: *ns,
            });
            lock(&self.marks).extend(marks);
        }
    }

    /// The guest has rung `MARK`.
    pub fn guest_mark(&self, number: u32) {
        if self.sink.is_some() && lock(&self.marks).len() < GUEST_MARKS_MAX {
            self.mark(&format!("guest mark {number}"));
        }
    }

    /// Whether a report is wanted that ends with the guest's first byte, and there has been none.
    #[must_use]
    pub fn awaits_output(&self) -> bool {
        self.sink.is_some() && !self.has_output.load(Ordering::Relaxed)
    }

    /// The guest's first byte is out: the start is over, and the report is to be written.
    pub fn first_output(&self) {
        if self.has_output.load(Ordering::Relaxed) || self.has_output.swap(true, Ordering::SeqCst) {
            return;
        }
        self.step(Step::Process);
        match self.reporter.get() {
            Some(events) => events.send(Event::FirstOutput),
            None => self.write_report(None),
        }
    }

    /// The report, as far as the start has come.
    #[must_use]
    pub fn report(&self) -> StartTimings {
        let steps = lock(&self.steps);
        let at = |step| {
            steps
                .iter()
                .find(|(found, _)| *found == step)
                .map(|(_, ns)| *ns)
        };
        let (mut before, mut lengths) = (self.main_ns, [0.0; 4]);
        let order = [
            Step::ImageLoad,
            Step::Sandbox,
            Step::Resources,
            Step::Process,
        ];
        for (length, step) in lengths.iter_mut().zip(order) {
            let end = at(step).unwrap_or(before);
            *length = microseconds(before, end);
            before = end;
        }
        let [image_load_us, sandbox_us, resources_us, process_us] = lengths;
        let spawn_us = microseconds(self.caller_ns.unwrap_or(self.main_ns), self.main_ns);
        let sum_us = lengths.iter().sum();
        let mut marks = lock(&self.marks);
        marks.sort_by_key(|stamp| stamp.ns);
        let marks = marks.iter().map(|stamp| Mark {
            name: stamp.name.clone(),
            thread: stamp.thread.clone(),
            at_us: microseconds(self.main_ns, stamp.ns),
        });
        StartTimings {
            way: self.way.to_owned(),
            spawn_us,
            image_load_us,
            sandbox_us,
            resources_us,
            process_us,
            sum_us,
            total_us: spawn_us + sum_us,
            marks: marks.collect(),
            touched: None,
        }
    }

    /// The run is over. A guest that gave out nothing has no start to report.
    pub fn end(&self) {
        let is_news = !matches!(self.sink, Some(TimingsSink::Keep(_)));
        if !self.has_output.swap(true, Ordering::SeqCst) && is_news {
            report::say("no timings: the guest gave out no byte");
        }
    }

    /// Writes the report, with what the start has `touched` if that is known.
    pub fn write_report(&self, touched: Option<Touched>) {
        let report = StartTimings {
            touched,
            ..self.report()
        };
        let Ok(mut line) = serde_json::to_string(&report) else {
            return;
        };
        line.push('\n');
        let written = match &self.sink {
            Some(TimingsSink::Call(print) | TimingsSink::Keep(print)) => {
                print(&report);
                Ok(())
            }
            Some(TimingsSink::File(path)) => sink::write_once(path, line.as_bytes()),
            Some(TimingsSink::Stderr) => StandardStream::Stderr.write_all(line.as_bytes()),
            None => Ok(()),
        };
        if let Err(cause) = written {
            report::say(&format!("cannot write the timings: {cause}"));
        }
    }
}

/// From `start` to `end` in microseconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "a start takes far less than 2^52 ns"
)]
fn microseconds(start: u64, end: u64) -> f64 {
    end.saturating_sub(start) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other_and_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("timings");
        let start = monotonic_ns();
        let stamps = Stamps::new(
            "boot",
            start,
            Some(start - 5000),
            Some(TimingsSink::File(path.clone())),
        );
        for step in [Step::ImageLoad, Step::Sandbox, Step::Resources] {
            stamps.step(step);
        }
        stamps.first_output();
        stamps.first_output();
        let text = std::fs::read_to_string(path).unwrap();
        let report: StartTimings = serde_json::from_str(&text).unwrap();
        assert!((report.spawn_us - 5.0).abs() < 0.001 && report.sum_us > 0.0);
        assert!((report.total_us - report.spawn_us - report.sum_us).abs() < 0.001);
    }

    #[test]
    fn marks_are_in_the_order_of_time_and_know_their_thread() {
        let stamps = Stamps::new("boot", 1000, None, Some(TimingsSink::Stderr));
        stamps.marks_at("control", &[("later", u64::MAX / 2), ("earlier", 2000)]);
        stamps.mark("now");
        let marks = stamps.report().marks;
        let names: Vec<&str> = marks.iter().map(|mark| mark.name.as_str()).collect();
        assert_eq!(names, ["earlier", "now", "later"]);
        assert_eq!((marks[0].thread.as_str(), marks[0].at_us), ("control", 1.0));
        assert!(marks[1].thread.contains("marks_are_in_the_order"));
    }

    #[test]
    fn a_profile_counts_faults_by_step_and_not_those_of_the_last() {
        let new = || Stamps::new("boot", 0, None, Some(TimingsSink::Stderr));
        assert!(!new().is_profile() && new().faults().is_empty());
        let stamps = new().for_profile();
        let touched = vec![1_u8; 1 << 20];
        stamps.step(Step::ImageLoad);
        stamps.step(Step::Process);
        drop(touched);
        let faults = stamps.faults();
        let steps: Vec<&str> = faults.iter().map(|step| step.step.as_str()).collect();
        assert_eq!(steps, ["spawn", "image_load"]);
        assert!(faults[0].faults > 0);
    }
}

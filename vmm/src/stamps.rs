//! When each step of a start was done, for `--timings`. Without that flag a stamp is one comparison.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use lightv_api::timings::{Mark, StartTimings};

use crate::event::{Event, EventSender};
use crate::lock::lock;
use crate::report;
use crate::sink;
use crate::sys::file::StandardStream;
use crate::sys::process::monotonic_ns;

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
    marks: Mutex<Vec<(String, u64)>>,
    has_output: AtomicBool,
    /// Who writes the report: a vCPU must not open a file.
    reporter: OnceLock<EventSender>,
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
            reporter: OnceLock::new(),
        }
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
    }

    /// `name` is done, inside a step.
    pub fn mark(&self, name: &str) {
        if self.sink.is_some() {
            let now = monotonic_ns();
            lock(&self.marks).push((name.to_owned(), now));
        }
    }

    /// Each of `marks` was done at its time of CLOCK_MONOTONIC, in nanoseconds.
    pub fn marks_at(&self, marks: &[(&str, u64)]) {
        if self.sink.is_some() {
            let marks = marks.iter().map(|(name, ns)| ((*name).to_owned(), *ns));
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
            None => self.write_report(),
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
        let marks = lock(&self.marks);
        let marks = marks.iter().map(|(name, ns)| Mark {
            name: name.clone(),
            at_us: microseconds(self.main_ns, *ns),
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
        }
    }

    /// The run is over. A guest that gave out nothing has no start to report.
    pub fn end(&self) {
        let is_news = !matches!(self.sink, Some(TimingsSink::Keep(_)));
        if !self.has_output.swap(true, Ordering::SeqCst) && is_news {
            report::say("no timings: the guest gave out no byte");
        }
    }

    /// Writes the report.
    pub fn write_report(&self) {
        let report = self.report();
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
}

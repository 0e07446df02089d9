//! Wrong machines: what is changed of a right one, and what must come of it.

use std::time::Duration;

use lightv_api::exit::BAD_CONFIG;
use serde_json::Value;

use crate::machine;
use crate::process::{Finished, run};
use crate::scratch::Scratch;

/// No refusal takes longer, however loaded the host is.
const REFUSAL_MAX: Duration = Duration::from_secs(10);

/// A machine that is right but for what a test changes.
#[derive(Debug)]
pub struct Trial {
    /// Where it is run.
    pub scratch: Scratch,
    /// Its configuration: says hello.
    pub base: Value,
}

impl Trial {
    /// A new one.
    ///
    /// # Panics
    /// When its folder cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let base = machine::config(&scratch.guest_kernel(), "hello");
        Self { scratch, base }
    }

    /// Runs the machine with `change` in it.
    ///
    /// # Panics
    /// When it takes long, or something is left behind.
    #[must_use]
    pub fn run(&self, change: &Value) -> Finished {
        self.run_text(machine::with(&self.base, change).to_string())
    }

    /// Runs the machine that is described by `json`, whatever that is.
    ///
    /// # Panics
    /// When it takes long, or something is left behind.
    #[must_use]
    pub fn run_text(&self, json: impl AsRef<[u8]>) -> Finished {
        self.scratch.write("vm.json", json);
        let before = self.scratch.listing();
        let finished = run(&mut self.scratch.vmm(&["--config", "vm.json"]));
        self.scratch.assert_nothing_left(&before);
        assert!(finished.took < REFUSAL_MAX, "{finished:?}");
        finished
    }

    /// Looks whether the machine with `change` in it is refused.
    ///
    /// # Panics
    /// When it is not, or otherwise than with `code` and `words`.
    #[track_caller]
    pub fn check(&self, change: &Value, code: u8, words: &[&str]) {
        let finished = self.run(change);
        println!("{change}\n    {}", finished.stderr.trim_end());
        finished.assert_refused(code, words);
    }

    /// Looks whether `change` is refused with the name of `field`.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn check_field(&self, change: &Value, field: &str) {
        self.check(change, BAD_CONFIG, &[field]);
    }
}

impl Default for Trial {
    fn default() -> Self {
        Self::new()
    }
}

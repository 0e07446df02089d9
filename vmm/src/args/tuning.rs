//! Flags for presets, and for the single settings that they choose.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use lightv_api::contract::machine::HugePages;
use lightv_api::contract::tuning::{Preset, TuningSpec};

/// Which preset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
#[group(id = "preset", multiple = false)]
pub struct PresetArgs {
    /// Start soon: what the image is known to need is prepared (docs/presets.md)
    #[arg(long, help_heading = TUNING)]
    optimize_startup: bool,
    /// Answer soon and compute fast: large pages, polling, CPUs of its own
    #[arg(long, help_heading = TUNING)]
    optimize_performance: bool,
    /// Be one of many: no memory in advance, what the start needed given back at once
    #[arg(long, help_heading = TUNING)]
    optimize_concurrency: bool,
}

const TUNING: &str = "How the host runs it (docs/presets.md)";

impl PresetArgs {
    /// The preset, if one was asked for.
    #[must_use]
    pub const fn preset(&self) -> Option<Preset> {
        if self.optimize_startup {
            Some(Preset::Startup)
        } else if self.optimize_performance {
            Some(Preset::Performance)
        } else if self.optimize_concurrency {
            Some(Preset::Concurrency)
        } else {
            None
        }
    }
}

/// Presets and single settings, for whoever starts a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = TUNING)]
pub struct TuningArgs {
    #[command(flatten)]
    preset: PresetArgs,
    /// Hold vCPUs to CPUs of the host
    #[arg(long, value_name = "VCPU=CPU,…")]
    pin_vcpus: Option<Pins>,
    /// Hold the thread that does the devices' work to a CPU of the host
    #[arg(long, value_name = "CPU")]
    pin_control: Option<u32>,
    /// What guest memory is made of: none (pages of 4 KiB), transparent (those, which the kernel may join), 2M (large ones from
    /// the kernel's pool)
    #[arg(long, value_name = "KIND", ignore_case = true)]
    huge_pages: Option<PagesArg>,
    /// Microseconds for which KVM keeps a CPU for a vCPU that waits [default: as KVM likes]
    #[arg(long, value_name = "US")]
    halt_poll_us: Option<u32>,
    /// Microseconds for which the loop looks at most for a disk's next request before it sleeps; 0: never [default: 200]
    #[arg(long, value_name = "US")]
    disk_poll_us: Option<u32>,
    /// Prepare what a restored guest is known to need: with `true` files are also read ahead [default: its working set alone]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    prefetch: Option<bool>,
    /// Milliseconds of nothing to do after which memory that only the start needed is given back [default: 1000]
    #[arg(long, value_name = "MS")]
    give_back_after_ms: Option<u32>,
    /// Say what a preset has come to
    #[arg(short, long)]
    pub verbose: bool,
}

/// See [`TuningArgs::pin_vcpus`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Pins(BTreeMap<u8, u32>);

impl FromStr for Pins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pins = BTreeMap::new();
        for pair in text.split(',') {
            let numbers = pair
                .split_once('=')
                .and_then(|(vcpu, cpu)| Some((vcpu.parse().ok()?, cpu.parse().ok()?)));
            let Some((vcpu, cpu)) = numbers else {
                return Err(format!(
                    "`{pair}` is no VCPU=CPU; allowed: numbers from 0 on, as in 0=2,1=3"
                ));
            };
            if pins.insert(vcpu, cpu).is_some() {
                return Err(format!("vCPU {vcpu} is named twice"));
            }
        }
        Ok(Self(pins))
    }
}

/// See [`HugePages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PagesArg {
    None,
    Transparent,
    #[value(name = "2M")]
    Large,
}

impl PagesArg {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Transparent => "transparent",
            Self::Large => "2M",
        }
    }
}

impl TuningArgs {
    /// The flag of a preset, `word`, alone; `None` if it is none.
    #[must_use]
    pub fn of_preset(word: &OsStr) -> Option<Self> {
        let mut preset = PresetArgs::default();
        *match word.to_str()? {
            "--optimize-startup" => &mut preset.optimize_startup,
            "--optimize-performance" => &mut preset.optimize_performance,
            "--optimize-concurrency" => &mut preset.optimize_concurrency,
            _ => return None,
        } = true;
        Some(Self {
            preset,
            ..Self::default()
        })
    }

    /// What guest memory is made of, if that was said.
    #[must_use]
    pub fn huge_pages(&self) -> Option<HugePages> {
        self.huge_pages.map(|pages| match pages {
            PagesArg::None => HugePages::None,
            PagesArg::Transparent => HugePages::Transparent,
            PagesArg::Large => HugePages::Hugetlbfs2M,
        })
    }

    /// All the rest.
    #[must_use]
    pub fn spec(&self) -> TuningSpec {
        TuningSpec {
            optimize: self.preset.preset(),
            pin_vcpus: self.pin_vcpus.clone().unwrap_or_default().0,
            pin_control: self.pin_control,
            halt_poll_us: self.halt_poll_us,
            disk_poll_us: self.disk_poll_us,
            prefetch: self.prefetch,
            give_back_after_ms: self.give_back_after_ms,
        }
    }

    /// The same for another `lightv-vmm`.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<String> = Vec::new();
        words.extend(self.preset.preset().map(|preset| {
            let name = match preset {
                Preset::Startup => "--optimize-startup",
                Preset::Performance => "--optimize-performance",
                Preset::Concurrency => "--optimize-concurrency",
            };
            name.to_owned()
        }));
        if let Some(Pins(pins)) = &self.pin_vcpus {
            let pins: Vec<String> = pins
                .iter()
                .map(|(vcpu, cpu)| format!("{vcpu}={cpu}"))
                .collect();
            words.extend(["--pin-vcpus".to_owned(), pins.join(",")]);
        }
        if let Some(pages) = self.huge_pages {
            words.extend(["--huge-pages".to_owned(), pages.name().to_owned()]);
        }
        for (name, number) in [
            ("--pin-control", self.pin_control),
            ("--halt-poll-us", self.halt_poll_us),
            ("--disk-poll-us", self.disk_poll_us),
            ("--give-back-after-ms", self.give_back_after_ms),
        ] {
            words.extend(
                number
                    .into_iter()
                    .flat_map(|number| [name.to_owned(), number.to_string()]),
            );
        }
        words.extend(
            self.prefetch
                .map(|is_wanted| format!("--prefetch={is_wanted}")),
        );
        if self.verbose {
            words.push("--verbose".to_owned());
        }
        words.into_iter().map(OsString::from).collect()
    }
}

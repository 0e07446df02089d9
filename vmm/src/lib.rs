//! LightV's monitor: one process, one microVM.
//!
//! A walk through it (docs/architecture.md): `main` reads flags and calls [`job`]; [`boot`] or [`restore`] builds a
//! [`machine::Machine`] from a proved [`config::MachineConfig`]; [`control`] runs it. Each module uses only those that
//! the list in docs/architecture.md has before it.

#![deny(unsafe_code)]

pub mod affinity;
pub mod arch;
pub mod args;
pub mod at_end;
pub mod boot;
pub mod boot_timer;
pub mod builder;
pub mod bus;
pub mod buttons;
pub mod cmdline;
pub mod config;
pub mod confinement;
pub mod control;
pub mod control_page;
pub mod control_thread;
pub mod describe;
pub mod device_set;
pub mod event;
pub mod exits;
pub mod export;
pub mod feed;
pub mod foreground;
pub mod frozen;
pub mod held_socket;
pub mod host_check;
pub mod image;
pub mod inspect;
pub mod jail;
pub mod jail_plan;
pub mod job;
pub mod kernel;
pub mod kvm_stats;
pub mod limits;
pub mod listen;
pub mod lock;
pub mod log;
pub mod machine;
pub mod memory;
pub mod memory_watch;
pub mod metadata;
pub mod metrics;
pub mod net_override;
pub mod orders;
pub mod output;
pub mod outputs;
pub mod overrides;
pub mod page_set;
pub mod poller;
pub mod publish;
pub mod reclaim;
pub mod report;
pub mod rest;
pub mod restore;
pub mod runtime_dir;
pub mod sandbox;
pub mod save;
pub mod seat;
pub mod serial_out;
pub mod service_manager;
pub mod side_process;
pub mod sink;
pub mod snapshot;
pub mod stamps;
pub mod starter;
pub mod stop_text;
#[allow(unsafe_code)]
pub mod sys;
pub mod tell_run;
pub mod template;
pub mod terminal;
pub mod touched;
pub mod user_net;
pub mod vcpu;
pub mod vm;
pub mod vsock_socket;

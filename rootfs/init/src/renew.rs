//! The one moment at which the machine is saved, and what makes each restored one an own machine: random numbers, clock,
//! names, addresses, orders. All of it is on the path of a start, so what it needs is opened before.

use std::fs::File;
use std::io;

use lightv_contract::agent::AgentSpec;
use lightv_contract::control::{MARK_USER_CODE, write};
use rustix::time::{ClockId, Timespec};

use crate::control::{self, ControlError, Orders, WallClock};
use crate::fresh;
use crate::message::{plain, say};
use crate::names;
use crate::network::Network;
use crate::run_file;
use crate::sys::control_page::ControlPage;
use crate::sys::{counter, random};

/// Who this machine is, and what it is to do.
#[derive(Debug)]
pub struct Identity {
    page: ControlPage,
    generation: [u8; 16],
    orders: Orders,
    spec: AgentSpec,
    network: Network,
    random: File,
}

/// What a restore has changed.
#[derive(Debug, Clone, Copy)]
pub struct Renewed {
    /// Random bytes for a program that waits.
    pub random: [u8; 24],
    /// Whether the program is to be another one, or the same with other words, environment, user or folder.
    pub is_other_program: bool,
}

impl Identity {
    /// Takes names and addresses of `spec` on, and the seed: without an entropy device the kernel would let programs wait
    /// for random numbers. Nothing more has to be opened after a restore.
    ///
    /// # Errors
    /// When the kernel has no random numbers or no network.
    pub fn assume(page: ControlPage, orders: Orders, spec: AgentSpec) -> io::Result<Self> {
        names::set(&spec);
        let identity = Self {
            page,
            generation: control::generation(&page),
            network: Network::start(&spec.network)?,
            random: File::options().write(true).open("/dev/urandom")?,
            orders,
            spec,
        };
        identity.reseed(control::seed(&page));
        Ok(identity)
    }

    /// The orders of this run.
    #[must_use]
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// The agent's part of them.
    #[must_use]
    pub fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    /// Tells the monitor that the machine may be saved here. What follows runs in the saved machine and in each restored
    /// one; in those, everything that must differ does so when this returns.
    ///
    /// # Errors
    /// When a restored machine's orders cannot be read.
    pub fn ready(&mut self) -> Result<Option<Renewed>, ControlError> {
        self.page.ring(write::READY, 1);
        let generation = control::generation(&self.page);
        if generation == self.generation {
            return Ok(None);
        }
        self.generation = generation;
        let seed = control::seed(&self.page);
        self.reseed(seed);
        self.set_clock();
        let is_other_program = self.take_orders()?;
        let random = fresh::bytes_from(&seed);
        Ok(Some(Renewed {
            random,
            is_other_program,
        }))
    }

    fn reseed(&self, seed: [u8; 32]) {
        if let Err(error) = random::reseed(&self.random, seed) {
            say(format_args!("random numbers may repeat: {}", plain(&error)));
        }
    }

    /// The same for a program that runs already: it finds the orders of the run in a file, and the monitor is told that its
    /// code goes on. Returns whether the machine was restored.
    ///
    /// # Errors
    /// When a restored machine's orders cannot be read, or written for the program.
    pub fn ready_while_running(&mut self) -> io::Result<bool> {
        let renewed = self.ready().map_err(io::Error::other)?;
        if renewed.is_some_and(|renewed| renewed.is_other_program) {
            run_file::write(&self.orders)?;
        }
        self.mark();
        Ok(renewed.is_some())
    }

    fn set_clock(&self) {
        const SECOND_NS: u64 = 1_000_000_000;
        let now_ns = WallClock::read(&self.page).at(counter::read());
        let (seconds, rest) = (now_ns / SECOND_NS, now_ns % SECOND_NS);
        if let (Ok(tv_sec), Ok(tv_nsec)) = (seconds.try_into(), rest.try_into()) {
            let now = Timespec { tv_sec, tv_nsec };
            if let Err(error) = rustix::time::clock_settime(ClockId::Realtime, now) {
                say(format_args!("the clock is wrong: {}", plain(&error.into())));
            }
        }
    }

    /// Reads the orders again, and returns whether they are of another program.
    fn take_orders(&mut self) -> Result<bool, ControlError> {
        let orders = Orders::read(&self.page)?;
        if orders == self.orders {
            return Ok(false);
        }
        let spec = orders.spec()?;
        if (&spec.hostname, &spec.network) != (&self.spec.hostname, &self.spec.network) {
            names::set(&spec);
        }
        if spec.network != self.spec.network {
            self.network.change(&spec.network);
        }
        let is_same = orders.is_same_run(&self.orders)
            && spec.entrypoint == self.spec.entrypoint
            && spec.workdir == self.spec.workdir
            && spec.user == self.spec.user;
        (self.orders, self.spec) = (orders, spec);
        Ok(!is_same)
    }

    /// Tells the monitor that the next instruction is one of the user's own code.
    pub fn mark(&self) {
        self.page.ring(write::MARK, MARK_USER_CODE);
    }

    /// Tells everybody on the link where the machine is now. It takes no part in what the program sees, so it comes after
    /// the program was let go.
    pub fn announce(&self) {
        self.network.announce();
    }
}

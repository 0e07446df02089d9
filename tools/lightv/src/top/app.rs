//! What is shown, and what a key means.
//!
//! ```text
//!            /                    enter
//!   Filter <----- Table ----------------------> Details
//!      |  enter,  ^  |  ^                        |  ^
//!      +----------+  |  +------ esc, enter ------+  |
//!         esc        | s, k                    s, k |
//!                    +-----------> Ask -------------+    y, n, esc: back to where it was asked
//! ```

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use lightv_api::contract::instance::InstanceState;
use lightv_api::runtime::VmRecord;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;

use super::columns::{Column, whole};
use super::history::History;
use super::sampler::{Found, Row};
use super::theme::Theme;
use crate::cmd::stop::PATIENCE_S;
use crate::vms::State;

/// What is to be done outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Quit,
    /// Give the terminal back and stand still.
    Suspend,
    /// Stop a microVM: it has `patience` to end by itself, or none.
    Stop {
        vm: VmRecord,
        patience: Option<Duration>,
    },
}

/// What keys are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    Table,
    /// The filter is typed.
    Filter,
    Details,
    Ask(Question),
}

/// Whether a microVM is to be stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    vm: VmRecord,
    patience: Option<Duration>,
    /// It was asked where its details are shown.
    is_in_details: bool,
}

impl Question {
    pub(super) fn text(&self) -> String {
        let Self { vm, patience, .. } = self;
        let name = super::columns::printable(&vm.id);
        match patience {
            Some(patience) => format!(
                "Stop {name} (process {})? It is asked to end, and killed after {} s.",
                vm.pid,
                patience.as_secs()
            ),
            None => format!("Kill {name} (process {}) at once?", vm.pid),
        }
    }

    pub(super) const fn is_in_details(&self) -> bool {
        self.is_in_details
    }
}

/// What a microVM has done lately.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Tenths of a percent of a core.
    pub(super) cpu: History,
    /// Bytes a second, of disks and networks.
    pub(super) transfer: History,
}

/// All of it.
#[derive(Debug)]
pub(super) struct App {
    pub(super) theme: Theme,
    pub(super) mode: Mode,
    /// Told until the next key.
    pub(super) message: Option<String>,
    pub(super) filter: String,
    pub(super) sort: Column,
    pub(super) is_reversed: bool,
    /// How far the table is scrolled.
    pub(super) table: TableState,
    /// Rows that fit on the screen, as it was drawn last.
    pub(super) page: usize,
    found: Option<Found>,
    past: HashMap<(u32, u64), Past>,
    /// Process and its start: of the same number there may be another one later.
    selected: Option<(u32, u64)>,
}

/// Sums over all microVMs.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) count: usize,
    pub(super) paused: usize,
    pub(super) silent: usize,
    pub(super) cpu_percent: f64,
    pub(super) resident_kib: u64,
    pub(super) transfer: f64,
}

const fn key_of(vm: &VmRecord) -> (u32, u64) {
    (vm.pid, vm.start_ticks)
}

impl App {
    pub(super) fn new(theme: Theme) -> Self {
        Self {
            theme,
            mode: Mode::Table,
            message: None,
            filter: String::new(),
            sort: Column::Cpu,
            is_reversed: false,
            table: TableState::new(),
            page: 1,
            found: None,
            past: HashMap::new(),
            selected: None,
        }
    }

    /// There is a new look at all of them.
    pub(super) fn take(&mut self, found: Found) {
        let mut before = std::mem::take(&mut self.past);
        for row in &found.rows {
            let mut past = before.remove(&key_of(&row.vm)).unwrap_or_default();
            past.cpu.push(whole(row.cpu_percent.unwrap_or(0.0) * 10.0));
            let bytes = row.rates.map_or(0.0, |rates| rates.bytes());
            past.transfer.push(whole(bytes));
            self.past.insert(key_of(&row.vm), past);
        }
        self.found = Some(found);
        self.keep_selection();
    }

    /// Something to be told.
    pub(super) fn say(&mut self, text: String) {
        self.message = Some(text);
    }

    /// Whether there was a look at all.
    pub(super) const fn has_looked(&self) -> bool {
        self.found.is_some()
    }

    /// Seconds since 1970 at the last look.
    pub(super) fn now(&self) -> u64 {
        self.found.as_ref().map_or(0, |found| found.now)
    }

    /// Those that the filter lets through, in order.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let filter = self.filter.to_lowercase();
        let rows = self.found.iter().flat_map(|found| &found.rows);
        let mut rows: Vec<&Row> = rows.filter(|row| matches(row, &filter)).collect();
        rows.sort_by(|a, b| self.order(a, b));
        rows
    }

    fn order(&self, a: &Row, b: &Row) -> Ordering {
        let order = self.sort.compare(a, b, self.now());
        let order = if self.is_reversed {
            order.reverse()
        } else {
            order
        };
        order
            .then_with(|| a.vm.id.cmp(&b.vm.id))
            .then(a.vm.pid.cmp(&b.vm.pid))
    }

    pub(super) fn past(&self, row: &Row) -> Option<&Past> {
        self.past.get(&key_of(&row.vm))
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for row in self.found.iter().flat_map(|found| &found.rows) {
            totals.count += 1;
            totals.paused += usize::from(row.state == State::Known(InstanceState::Paused));
            totals.silent += usize::from(row.state == State::Silent);
            totals.cpu_percent += row.cpu_percent.unwrap_or(0.0);
            totals.resident_kib += row.taken.map_or(0, |taken| taken.resident_kib);
            totals.transfer += row.rates.map_or(0.0, |rates| rates.bytes());
        }
        totals
    }

    /// The one that is selected, if it still runs.
    pub(super) fn selected(&self) -> Option<&Row> {
        let rows = self.found.iter().flat_map(|found| &found.rows);
        let mut rows = rows.filter(|row| Some(key_of(&row.vm)) == self.selected);
        rows.next()
    }

    pub(super) fn is_selected(&self, row: &Row) -> bool {
        Some(key_of(&row.vm)) == self.selected
    }

    /// The process whose details are shown.
    pub(super) fn focus(&self) -> Option<u32> {
        let is_shown = match &self.mode {
            Mode::Details => true,
            Mode::Ask(question) => question.is_in_details,
            Mode::Table | Mode::Filter => false,
        };
        self.selected.filter(|_| is_shown).map(|(pid, _)| pid)
    }

    /// Place of the selected row among those that are shown.
    pub(super) fn place(&self) -> Option<usize> {
        let rows = self.rows();
        let place = |key| rows.iter().position(|row| key_of(&row.vm) == key);
        self.selected.and_then(place)
    }

    /// Where the selected one is gone or filtered out, the row in its place.
    fn keep_selection(&mut self) {
        if matches!(self.mode, Mode::Details) && self.selected().is_none() {
            self.mode = Mode::Table;
            self.say("It has ended".to_owned());
        }
        if self.place().is_none() {
            self.select(self.table.selected().unwrap_or(0));
        }
    }

    fn select(&mut self, place: usize) {
        let rows = self.rows();
        let row = rows.get(place).or(rows.last());
        let key = row.map(|row| key_of(&row.vm));
        self.selected = key;
    }

    fn step(&mut self, by: isize) {
        let place = self.place().unwrap_or(0);
        self.select(place.saturating_add_signed(by));
    }

    /// What a key means.
    pub(super) fn press(&mut self, key: KeyEvent) -> Action {
        self.message = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                KeyCode::Char('z') => Action::Suspend,
                _ => Action::None,
            };
        }
        match std::mem::replace(&mut self.mode, Mode::Table) {
            Mode::Table => self.press_in_table(key.code),
            Mode::Filter => self.press_in_filter(key.code),
            Mode::Details => self.press_in_details(key.code),
            Mode::Ask(question) => self.answer(question, key.code),
        }
    }

    fn press_in_table(&mut self, key: KeyCode) -> Action {
        let page = isize::try_from(self.page).unwrap_or(1);
        match key {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc => {
                self.filter.clear();
                self.keep_selection();
            }
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Up => self.step(-1),
            KeyCode::Down => self.step(1),
            KeyCode::PageUp => self.step(-page),
            KeyCode::PageDown => self.step(page),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Left => self.sort = self.sort.before(),
            KeyCode::Right => self.sort = self.sort.neighbour(1),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Enter if self.selected().is_some() => self.mode = Mode::Details,
            KeyCode::Char('s') => self.ask(false, Some(Duration::from_secs(PATIENCE_S))),
            KeyCode::Char('k') => self.ask(false, None),
            _ => {}
        }
        Action::None
    }

    fn press_in_filter(&mut self, key: KeyCode) -> Action {
        self.mode = Mode::Filter;
        match key {
            KeyCode::Enter => self.mode = Mode::Table,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Table;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Up => self.step(-1),
            KeyCode::Down => self.step(1),
            KeyCode::Char(typed) if self.filter.chars().count() < FILTER_MAX => {
                self.filter.push(typed);
            }
            _ => {}
        }
        self.keep_selection();
        Action::None
    }

    fn press_in_details(&mut self, key: KeyCode) -> Action {
        self.mode = Mode::Details;
        match key {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc | KeyCode::Enter => self.mode = Mode::Table,
            KeyCode::Up => self.step(-1),
            KeyCode::Down => self.step(1),
            KeyCode::Char('s') => self.ask(true, Some(Duration::from_secs(PATIENCE_S))),
            KeyCode::Char('k') => self.ask(true, None),
            _ => {}
        }
        Action::None
    }

    fn ask(&mut self, is_in_details: bool, patience: Option<Duration>) {
        if let Some(row) = self.selected() {
            self.mode = Mode::Ask(Question {
                vm: row.vm.clone(),
                patience,
                is_in_details,
            });
        }
    }

    fn answer(&mut self, question: Question, key: KeyCode) -> Action {
        let back = match question.is_in_details {
            true => Mode::Details,
            false => Mode::Table,
        };
        match key {
            KeyCode::Char('y' | 'Y') => {
                self.mode = back;
                let Question { vm, patience, .. } = question;
                self.say(format!("{} is being stopped", vm.id));
                Action::Stop { vm, patience }
            }
            KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => {
                self.mode = back;
                Action::None
            }
            // Not by accident.
            _ => {
                self.mode = Mode::Ask(question);
                Action::None
            }
        }
    }
}

/// Characters of a filter.
const FILTER_MAX: usize = 40;

fn matches(row: &Row, filter: &str) -> bool {
    let source = row.vm.source.as_ref();
    let source = source.map(|path| path.display().to_string());
    let texts = [
        row.vm.id.clone(),
        row.vm.pid.to_string(),
        row.state.to_string(),
        source.unwrap_or_default(),
    ];
    texts
        .iter()
        .any(|text| text.to_lowercase().contains(filter))
}

#[cfg(test)]
#[path = "app_tests.rs"]
pub(super) mod tests;

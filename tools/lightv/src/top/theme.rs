//! The few colours, and what stands for them where none are wanted.

use std::env;

use lightv_api::contract::instance::InstanceState;
use ratatui::style::{Color, Modifier, Style};

use crate::vms::State;

/// How things look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Theme {
    has_colour: bool,
}

impl Theme {
    /// With colours, unless NO_COLOR is set (<https://no-color.org>) or the terminal has none.
    pub(crate) fn of_environment() -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            has_colour: !is_set("NO_COLOR") && !is_dumb,
        }
    }

    #[cfg(test)]
    pub(crate) const fn with_colour(has_colour: bool) -> Self {
        Self { has_colour }
    }

    fn coloured(self, colour: Color) -> Style {
        if self.has_colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    pub(crate) const fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Of less weight.
    pub(crate) fn aside(self) -> Style {
        self.coloured(Color::DarkGray)
    }

    pub(crate) fn key(self) -> Style {
        self.coloured(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// The column by which is sorted.
    pub(crate) fn sorted(self) -> Style {
        self.key().add_modifier(Modifier::UNDERLINED)
    }

    pub(crate) const fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(crate) fn question(self) -> Style {
        self.coloured(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    pub(crate) fn cpu(self) -> Style {
        self.coloured(Color::Green)
    }

    pub(crate) fn transfer(self) -> Style {
        self.coloured(Color::Magenta)
    }

    pub(crate) fn state(self, state: State) -> Style {
        match state {
            State::Known(InstanceState::Running) => self.coloured(Color::Green),
            State::Known(InstanceState::Paused) => self.coloured(Color::Yellow),
            State::Known(InstanceState::NotStarted) => self.aside(),
            State::Silent => self.coloured(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

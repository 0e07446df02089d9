//! The columns of the table: what stands in them, how rows are sorted by them, and which there is room for.

use std::cmp::Ordering;

use super::sampler::{Rates, Row};
use crate::stats::Details;
use crate::text;

/// A column that can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    Id,
    Pid,
    State,
    Up,
    Cpu,
    Memory,
    Own,
    Guest,
    Read,
    Written,
    Received,
    Sent,
    Exits,
}

/// What is shown side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Column(Column),
    CpuGraph,
    TransferGraph,
}

use Shown::{CpuGraph, TransferGraph};

/// Width of a graph.
pub(crate) const GRAPH_WIDTH: u16 = 12;
/// The least width of ids; they get what is left.
const ID_WIDTH: u16 = 10;

/// From left to right, each with a rank of its own, from 1: where there is no room for all, those of the highest rank go first.
const ORDER: [(Shown, u8); 15] = [
    (Shown::Column(Column::Id), 1),
    (Shown::Column(Column::Pid), 6),
    (Shown::Column(Column::State), 4),
    (Shown::Column(Column::Up), 15),
    (Shown::Column(Column::Cpu), 2),
    (CpuGraph, 5),
    (Shown::Column(Column::Memory), 3),
    (Shown::Column(Column::Own), 14),
    (Shown::Column(Column::Guest), 13),
    (Shown::Column(Column::Read), 7),
    (Shown::Column(Column::Written), 8),
    (Shown::Column(Column::Received), 9),
    (Shown::Column(Column::Sent), 10),
    (TransferGraph, 11),
    (Shown::Column(Column::Exits), 12),
];

impl Column {
    /// All of them, from left to right.
    pub(crate) const ALL: [Self; 13] = [
        Self::Id,
        Self::Pid,
        Self::State,
        Self::Up,
        Self::Cpu,
        Self::Memory,
        Self::Own,
        Self::Guest,
        Self::Read,
        Self::Written,
        Self::Received,
        Self::Sent,
        Self::Exits,
    ];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Id => "ID",
            Self::Pid => "PID",
            Self::State => "STATE",
            Self::Up => "UP",
            Self::Cpu => "CPU %",
            Self::Memory => "RESIDENT",
            Self::Own => "OWN",
            Self::Guest => "GUEST",
            Self::Read => "READ/s",
            Self::Written => "WRITE/s",
            Self::Received => "RECV/s",
            Self::Sent => "SENT/s",
            Self::Exits => "EXITS/s",
        }
    }

    const fn width(self) -> u16 {
        match self {
            Self::Id => ID_WIDTH,
            Self::Pid | Self::Cpu => 7,
            Self::State => 13,
            Self::Up | Self::Memory | Self::Own | Self::Guest => 10,
            Self::Read | Self::Written | Self::Received | Self::Sent => 10,
            Self::Exits => 8,
        }
    }

    /// Whether it holds text, which is sorted upwards and stands on the left.
    pub(crate) const fn is_text(self) -> bool {
        matches!(self, Self::Id | Self::State)
    }

    /// The one that is `steps` further to the right, round about.
    pub(crate) fn neighbour(self, steps: usize) -> Self {
        let at = Self::ALL.iter().position(|column| *column == self);
        Self::ALL[(at.unwrap_or(0) + steps) % Self::ALL.len()]
    }

    /// The one on the left, round about.
    pub(crate) fn before(self) -> Self {
        self.neighbour(Self::ALL.len() - 1)
    }

    /// What stands in it of `row`, at the second `now` since 1970.
    pub(crate) fn cell(self, row: &Row, now: u64) -> String {
        let number = self.number(row, now);
        match (self, number) {
            (Self::Id, _) => printable(&row.vm.id),
            (Self::State, _) => row.state.to_string(),
            (_, None) => "-".to_owned(),
            (Self::Cpu, Some(percent)) => format!("{percent:.1}"),
            (Self::Pid, Some(_)) => row.vm.pid.to_string(),
            (Self::Up, Some(seconds)) => text::duration(whole(seconds)),
            (Self::Exits, Some(number)) => whole(number).to_string(),
            (_, Some(bytes)) => text::bytes(whole(bytes)),
        }
    }

    /// What `row` is sorted by, if it is a number; `None` where it is not known.
    #[expect(clippy::cast_precision_loss, reason = "no host has 2^52 bytes")]
    fn number(self, row: &Row, now: u64) -> Option<f64> {
        let kib = |kib: u64| kib.saturating_mul(1024) as f64;
        let detail = |of: fn(&Details) -> u64| {
            let details = row.taken.as_ref()?.details.as_ref()?;
            Some(kib(of(details)))
        };
        let rate = |of: fn(&Rates) -> f64| row.rates.as_ref().map(of);
        match self {
            Self::Id | Self::State => None,
            Self::Pid => Some(f64::from(row.vm.pid)),
            Self::Up => Some(now.saturating_sub(row.vm.started_unix_s) as f64),
            Self::Cpu => row.cpu_percent,
            Self::Memory => row.taken.as_ref().map(|taken| kib(taken.resident_kib)),
            Self::Own => detail(|details| details.own_kib),
            Self::Guest => detail(|details| details.guest_kib),
            Self::Read => rate(|rates| rates.read),
            Self::Written => rate(|rates| rates.written),
            Self::Received => rate(|rates| rates.received),
            Self::Sent => rate(|rates| rates.sent),
            Self::Exits => rate(|rates| rates.exits),
        }
    }

    /// How two rows follow each other: text upwards, numbers downwards, what is not known last.
    pub(crate) fn compare(self, a: &Row, b: &Row, now: u64) -> Ordering {
        match self {
            Self::Id => a.vm.id.cmp(&b.vm.id),
            Self::State => a.state.to_string().cmp(&b.state.to_string()),
            Self::Pid => a.vm.pid.cmp(&b.vm.pid),
            _ => {
                let number = |row| self.number(row, now).unwrap_or(-1.0);
                number(b).total_cmp(&number(a))
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a conversion that saturates is meant"
)]
pub(crate) fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// Text of others, without what would mean something to a terminal.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '·' } else { c };
    text.chars().map(shown).collect()
}

/// What there is room for in `width`, `sorted` by all means, and how wide each is.
pub(crate) fn fitting(width: u16, sorted: Column) -> Vec<(Shown, u16)> {
    let rank = |(shown, rank): (Shown, u8)| match shown == Shown::Column(sorted) {
        true => 0,
        false => rank,
    };
    let size = |shown| match shown {
        Shown::Column(column) => column.width(),
        CpuGraph | TransferGraph => GRAPH_WIDTH,
    };
    let mut shown = ORDER.to_vec();
    let total = |shown: &[(Shown, u8)]| -> u16 {
        let gaps = u16::try_from(shown.len().saturating_sub(1)).unwrap_or(0);
        shown.iter().map(|(shown, _)| size(*shown)).sum::<u16>() + gaps
    };
    while shown.len() > 1 && total(&shown) > width {
        let worst = shown.iter().map(|entry| rank(*entry)).max();
        shown.retain(|entry| Some(rank(*entry)) != worst);
    }
    let left = width.saturating_sub(total(&shown)).min(20);
    let grown = |shown| match shown {
        Shown::Column(Column::Id) => size(shown) + left,
        _ => size(shown),
    };
    shown
        .into_iter()
        .map(|(shown, _)| (shown, grown(shown)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: u16, sorted: Column) -> Vec<Shown> {
        let columns = fitting(width, sorted);
        columns.into_iter().map(|(shown, _)| shown).collect()
    }

    #[test]
    fn what_has_no_room_goes_by_its_rank_and_never_what_is_sorted_by() {
        for width in 1..300 {
            for sorted in Column::ALL {
                let columns = fitting(width, sorted);
                assert!(
                    columns
                        .iter()
                        .any(|(shown, _)| *shown == Shown::Column(sorted))
                        || width < 24
                );
                let gaps = u16::try_from(columns.len()).expect("a few") - 1;
                let sum: u16 = columns.iter().map(|(_, width)| width).sum();
                assert!(sum + gaps <= width || columns.len() == 1, "{width}");
            }
        }
        assert_eq!(shown(300, Column::Cpu).len(), ORDER.len());
        let narrow = shown(42, Column::Exits);
        assert!(narrow.contains(&Shown::Column(Column::Exits)), "{narrow:?}");
        assert!(narrow.contains(&Shown::Column(Column::Id)), "{narrow:?}");
    }

    #[test]
    fn neighbours_go_round() {
        let mut column = Column::Cpu;
        for _ in Column::ALL {
            assert_eq!(column.neighbour(1).before(), column);
            column = column.neighbour(1);
        }
        assert_eq!(column, Column::Cpu);
    }

    #[test]
    fn names_of_others_mean_nothing_to_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a·[2Jb");
    }
}

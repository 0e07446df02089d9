//! What a microVM has done lately.

use std::collections::VecDeque;

/// Looks that are kept: two minutes of them, one a second.
const KEPT: usize = 120;

/// Numbers, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(VecDeque<u64>);

/// Eighths of a character's height.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl History {
    pub(crate) fn push(&mut self, value: u64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The newest `count`, newest last.
    pub(crate) fn last(&self, count: usize) -> impl Iterator<Item = u64> {
        self.0
            .iter()
            .skip(self.0.len().saturating_sub(count))
            .copied()
    }

    /// As one line of `width` characters, the newest on the right; the highest of them, but no less than `floor`, is as high
    /// as a line.
    pub(crate) fn line(&self, width: usize, floor: u64) -> String {
        let highest = self.last(width).max().unwrap_or(0).max(floor).max(1);
        let bar = |value: u64| {
            let eighths = (u128::from(value) * 8).div_ceil(highest.into());
            usize::try_from(eighths)
                .ok()
                .and_then(|eighths| BARS.get(eighths))
                .copied()
                .unwrap_or('█')
        };
        let line: String = self.last(width).map(bar).collect();
        format!("{line:>width$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_newest_on_the_right_and_a_least_height() {
        let mut history = History::default();
        assert_eq!(history.line(3, 10), "   ");
        for value in [0, 5, 10] {
            history.push(value);
        }
        assert_eq!(history.line(4, 10), "  ▄█");
        assert_eq!(history.line(2, 10), "▄█");
        assert_eq!(history.line(4, 80), "  ▁▁");
        for value in 0..500 {
            history.push(value);
        }
        assert_eq!(history.last(1000).count(), KEPT);
        assert_eq!(history.last(1).next(), Some(499));
        history.push(u64::MAX);
        assert_eq!(history.line(2, 1), "▁█");
    }
}

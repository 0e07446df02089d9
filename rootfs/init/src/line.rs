//! The monitor's lines to the agent.

use lightv_contract::ports::AGENT_LINE_BYTES_MAX;

/// Bytes that have come, up to the end of a line.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds bytes. Returns the signals that whole lines ask for. Other lines are ignored, and so is one that is too long.
    pub fn add(&mut self, bytes: &[u8]) -> Vec<i32> {
        let mut signals = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = AGENT_LINE_BYTES_MAX.saturating_sub(self.partial.len());
            let kept = part.get(..room).unwrap_or(part);
            self.partial.extend(kept);
            if part.ends_with(b"\n") {
                signals.extend(signal(&self.partial));
                self.partial.clear();
            }
        }
        signals
    }
}

/// `N` of `signal N\n`: 1–64.
fn signal(line: &[u8]) -> Option<i32> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let number = line.strip_prefix("signal ")?.parse().ok()?;
    (1..=64).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_come_by_the_line() {
        let mut lines = Lines::default();
        assert!(lines.add(b"sig").is_empty());
        assert_eq!(lines.add(b"nal 15\nsignal 2\nsignal 1"), [15, 2]);
        assert_eq!(lines.add(b"0\n"), [10]);
    }

    #[test]
    fn other_lines_are_ignored() {
        let mut lines = Lines::default();
        let others = b"signal\nsignal 0\nsignal 65\nsignal x\nother 9\n\n";
        assert!(lines.add(others).is_empty());
        let long = [b"signal 1".repeat(100), b"\n".to_vec()].concat();
        assert!(lines.add(&long).is_empty());
        assert_eq!(lines.add(b"\xff\nsignal 9\n"), [9]);
    }
}

//! What the guest's `dirty` tells: it writes its memory round after round, and proves what the round before has written.

use crate::process::Process;

/// The last round that it has told of in whole lines. In none of them was anything wrong.
#[track_caller]
fn last_round(text: &str) -> Option<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let rounds = whole.lines().filter_map(|line| line.strip_prefix("round "));
    let parsed = rounds.map(|line| {
        let (round, rest) = line.split_once(' ').expect(line);
        assert!(rest.starts_with("wrong 0 gap_us "), "{line}");
        round.parse().expect(line)
    });
    // Each is looked at.
    parsed.fold(None, |_, round| Some(round))
}

/// Waits until it tells of a round from `least` on.
///
/// # Panics
/// When something was wrong.
#[must_use]
pub fn wait_for_round(process: &Process, least: u64) -> u64 {
    process.wait_stdout(|text| last_round(text).filter(|last| *last >= least))
}

/// The round that it tells of in its next lines.
///
/// # Panics
/// When something was wrong.
#[must_use]
pub fn next_round(process: &Process) -> u64 {
    let lines = |text: &str| text.matches('\n').count();
    let now = lines(&process.stdout());
    process.wait_stdout(|text| last_round(text).filter(|_| lines(text) > now + 1))
}

/// In a clone: the round at which it found itself restored, and its new seed. Nothing is told before that but what the moment of
/// the save left of a line: its end, which the other one tells too, in what it has `told`.
///
/// # Panics
/// When something else is.
#[must_use]
#[track_caller]
pub fn restored_at(text: &str, told: &str) -> Option<(u64, String)> {
    let (rest, restored) = text.split_once("restored at round ")?;
    let (restored, _) = restored.split_once('\n')?;
    let (round, seed) = restored.split_once(" seed ")?;
    let rest_of_line = rest.strip_suffix('\n').unwrap_or(rest);
    assert!(
        told.lines().any(|line| line.ends_with(rest_of_line)),
        "{text}"
    );
    Some((round.parse().expect(round), seed.to_owned()))
}

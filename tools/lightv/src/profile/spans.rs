//! What threads did from when to when, of the marks of several starts.

use std::collections::BTreeMap;

use lightv_api::timings::StartTimings;
use serde::Serialize;

use super::{AFTER, STEPS, median};

/// Something that a thread did. Times are in microseconds from the first line of `main`, medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Span {
    pub(crate) thread: String,
    pub(crate) name: String,
    /// The step in which it ended.
    pub(crate) step: &'static str,
    pub(crate) start_us: f64,
    pub(crate) end_us: f64,
}

/// A mark at which a thread had done nothing since the one before.
const IDLE: &str = "idle";

/// The step in which the moment `at_us` from the first line of `main` lies.
pub(crate) fn step_at(timings: &StartTimings, at_us: f64) -> &'static str {
    let mut ends = ends(timings).into_iter();
    if at_us < 0.0 {
        return STEPS[0];
    }
    let found = ends.position(|end| at_us <= end);
    found.map_or(AFTER, |step| STEPS[step + 1])
}

/// Where each of the four steps ends.
pub(crate) fn ends(timings: &StartTimings) -> [f64; 4] {
    let mut end = 0.0;
    [
        timings.image_load_us,
        timings.sandbox_us,
        timings.resources_us,
        timings.process_us,
    ]
    .map(|length| {
        end += length;
        end
    })
}

/// Marks of a start: thread, name, and when; those of one name are told apart by their number.
fn marks_of(timings: &StartTimings) -> Vec<((String, String, usize), f64)> {
    let of_steps = [
        "image load done",
        "interrupt controllers",
        "machine built",
        "first byte",
    ];
    let of_steps = of_steps.into_iter().zip(ends(timings));
    let of_steps = of_steps.map(|(name, end)| ("main".to_owned(), name.to_owned(), end));
    let marks = timings.marks.iter();
    let marks = marks.map(|mark| (mark.thread.clone(), mark.name.clone(), mark.at_us));
    let mut seen = BTreeMap::new();
    marks
        .chain(of_steps)
        .map(|(thread, name, at)| {
            let number = seen.entry((thread.clone(), name.clone())).or_insert(0);
            *number += 1;
            ((thread, name, *number), at)
        })
        .collect()
}

/// What threads did, of several starts of one kind; threads in the order of their first marks, `main` first.
pub(crate) fn spans(starts: &[StartTimings]) -> Vec<Span> {
    let mut marks: BTreeMap<(String, String, usize), Vec<f64>> = BTreeMap::new();
    for (key, at) in starts.iter().flat_map(marks_of) {
        marks.entry(key).or_default().push(at);
    }
    // What only some starts did is not in the middle of all.
    marks.retain(|_, ats| ats.len() * 2 > starts.len());
    let mut threads: BTreeMap<String, Vec<(f64, String)>> = BTreeMap::new();
    for ((thread, name, _), ats) in marks {
        threads.entry(thread).or_default().push((median(ats), name));
    }
    let Some(middle) = middle(starts) else {
        return Vec::new();
    };
    let mut threads: Vec<(String, Vec<(f64, String)>)> = threads.into_iter().collect();
    for (_, marks) in &mut threads {
        marks.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let first = |marks: &[(f64, String)]| marks.first().map_or(0.0, |(at, _)| *at);
    threads.sort_by(|(a, marks), (b, others)| {
        let is_main = |name: &str| name != "main";
        is_main(a)
            .cmp(&is_main(b))
            .then(first(marks).total_cmp(&first(others)))
    });
    let mut spans = Vec::new();
    for (thread, marks) in threads {
        let mut start_us = 0.0;
        for (end_us, name) in marks {
            if name != IDLE {
                spans.push(Span {
                    thread: thread.clone(),
                    name,
                    step: step_at(&middle, end_us),
                    start_us,
                    end_us,
                });
            }
            start_us = end_us;
        }
    }
    spans
}

/// A start whose steps end where they do in the middle of all.
pub(crate) fn middle(starts: &[StartTimings]) -> Option<StartTimings> {
    let first = starts.first()?;
    let end = |step: usize| median(starts.iter().map(|start| ends(start)[step]).collect());
    let mut before = 0.0;
    let [image_load_us, sandbox_us, resources_us, process_us] = [0, 1, 2, 3].map(|step| {
        let end = end(step);
        end - std::mem::replace(&mut before, end)
    });
    Some(StartTimings {
        way: first.way.clone(),
        spawn_us: median(starts.iter().map(|start| start.spawn_us).collect()),
        image_load_us,
        sandbox_us,
        resources_us,
        process_us,
        sum_us: median(starts.iter().map(|start| start.sum_us).collect()),
        total_us: median(starts.iter().map(|start| start.total_us).collect()),
        ..StartTimings::default()
    })
}

#[cfg(test)]
mod tests {
    use lightv_api::timings::Mark;

    use super::*;

    fn start(marks: &[(&str, &str, f64)]) -> StartTimings {
        let marks = marks.iter().map(|(thread, name, at_us)| Mark {
            name: (*name).to_owned(),
            thread: (*thread).to_owned(),
            at_us: *at_us,
        });
        StartTimings {
            image_load_us: 10.0,
            sandbox_us: 20.0,
            resources_us: 30.0,
            process_us: 40.0,
            marks: marks.collect(),
            ..StartTimings::default()
        }
    }

    #[test]
    fn spans_reach_from_mark_to_mark_of_their_thread_and_idle_time_is_none() {
        let at = |shift: f64| {
            start(&[
                ("main", "flags read", 2.0 + shift),
                ("control", "idle", 1.0),
                ("control", "vm created", 8.0 + shift),
                ("control", "idle", 50.0),
                ("control", "confined", 55.0),
            ])
        };
        let spans = spans(&[at(0.0), at(1.0), at(9.0)]);
        let found: Vec<_> = spans
            .iter()
            .map(|span| {
                (
                    span.thread.as_str(),
                    span.name.as_str(),
                    span.step,
                    span.start_us,
                    span.end_us,
                )
            })
            .collect();
        let expected = [
            ("main", "flags read", "image_load", 0.0, 3.0),
            ("main", "image load done", "image_load", 3.0, 10.0),
            ("main", "interrupt controllers", "sandbox", 10.0, 30.0),
            ("main", "machine built", "resources", 30.0, 60.0),
            ("main", "first byte", "process", 60.0, 100.0),
            ("control", "vm created", "image_load", 1.0, 9.0),
            ("control", "confined", "resources", 50.0, 55.0),
        ];
        assert_eq!(found, expected);
        assert!(super::spans(&[]).is_empty());
    }

    #[test]
    fn what_few_starts_did_is_left_out() {
        let with = start(&[("main", "guest mark 1", 70.0)]);
        let found = spans(&[with, start(&[]), start(&[])]);
        assert!(found.iter().all(|span| span.name != "guest mark 1"));
    }

    #[test]
    fn moments_lie_in_steps() {
        let start = start(&[]);
        for (at, step) in [
            (-1.0, "spawn"),
            (0.0, "image_load"),
            (10.0, "image_load"),
            (10.5, "sandbox"),
            (99.0, "process"),
            (100.5, "after"),
        ] {
            assert_eq!(step_at(&start, at), step, "{at}");
        }
    }
}

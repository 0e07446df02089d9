//! The part of a filter that looks at the number of a call: seccompiler compares it with one after the other, which the kernel
//! does some 450 times when the filter is installed.

use crate::shorten::{LOAD, Step, Target};

/// Codes of conditional jumps (linux/bpf_common.h).
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
/// Where the number of the call stands (seccomp(2), `struct seccomp_data`).
const NUMBER: u32 = 0;
/// Comparisons that are made one after the other: less than a comparison more for each two of them.
const IN_TURN_MAX: usize = 3;

/// Numbers that lead to the same.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    last: u32,
    target: Target,
}

/// The same steps, with comparisons of the number in a tree. New ones are called by numbers from `free` on. What is not a chain
/// of comparisons stays as it is.
pub(crate) fn by_halves(steps: Vec<Step>, free: usize) -> Vec<Step> {
    let Some(load) = steps
        .iter()
        .position(|step| (step.code, step.k) == (LOAD, NUMBER))
    else {
        return steps;
    };
    let (chain, other) = chain_from(&steps, steps[load].then);
    let is_apart = steps.iter().enumerate().all(|(index, step)| {
        let targets = [Some(step.then), step.otherwise];
        let leads_in = targets
            .into_iter()
            .flatten()
            .any(|to| matches!(to, Target::Step(id) if chain.contains(&id)));
        !leads_in || index == load || chain.contains(&step.id)
    });
    if chain.is_empty() || !is_apart {
        return steps;
    }
    let mut tree = Tree {
        other,
        made: Vec::new(),
        free,
    };
    let root = tree.grow(&ranges(&steps, &chain));
    let mut all = Vec::with_capacity(steps.len() + tree.made.len());
    let mut made = Some(tree.made);
    for (index, mut step) in steps.into_iter().enumerate() {
        if index == load {
            step.then = root;
            all.push(step);
            all.extend(made.take().into_iter().flatten());
        } else if !chain.contains(&step.id) {
            all.push(step);
        }
    }
    all
}

/// The comparisons from `target` on, and where the last one leads when none holds.
fn chain_from(steps: &[Step], mut target: Target) -> (Vec<usize>, Target) {
    let mut chain = Vec::new();
    while let Target::Step(id) = target {
        let step = steps.iter().find(|step| step.id == id);
        let Some(step) = step.filter(|step| step.code == EQUAL) else {
            break;
        };
        let Some(otherwise) = step.otherwise else {
            break;
        };
        chain.push(id);
        target = otherwise;
    }
    (chain, target)
}

/// What the chain says, in order; of a number that it has twice the first counts.
fn ranges(steps: &[Step], chain: &[usize]) -> Vec<Range> {
    let mut calls: Vec<(u32, Target)> = Vec::new();
    for id in chain {
        for step in steps.iter().filter(|step| step.id == *id) {
            if calls.iter().all(|(number, _)| *number != step.k) {
                calls.push((step.k, step.then));
            }
        }
    }
    calls.sort_by_key(|(number, _)| *number);
    let mut ranges: Vec<Range> = Vec::new();
    for (number, target) in calls {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == number && range.target == target => {
                range.last = number;
            }
            _ => ranges.push(Range {
                first: number,
                last: number,
                target,
            }),
        }
    }
    ranges
}

struct Tree {
    /// Where numbers lead that are in no range.
    other: Target,
    /// Each before those it leads to: jumps lead forward alone.
    made: Vec<Step>,
    free: usize,
}

impl Tree {
    /// Where numbers between those of the neighbours of `ranges` are told apart.
    fn grow(&mut self, ranges: &[Range]) -> Target {
        if ranges.len() <= IN_TURN_MAX {
            return self.compare_in_turn(ranges);
        }
        let (below, above) = ranges.split_at(ranges.len() / 2);
        let place = self.made.len();
        let id = self.take_id();
        // It has its place before its branches are there.
        let condition = (AT_LEAST, above[0].first);
        self.made
            .push(Step::condition(id, condition, self.other, self.other));
        let otherwise = self.grow(below);
        let then = self.grow(above);
        self.made[place] = Step::condition(id, condition, then, otherwise);
        Target::Step(id)
    }

    fn compare_in_turn(&mut self, ranges: &[Range]) -> Target {
        let Some((range, rest)) = ranges.split_first() else {
            return self.other;
        };
        let Range {
            first,
            last,
            target,
        } = *range;
        let place = self.made.len();
        let id = self.take_id();
        self.made
            .push(Step::condition(id, (EQUAL, first), target, self.other));
        if first == last {
            let otherwise = self.compare_in_turn(rest);
            self.made[place] = Step::condition(id, (EQUAL, first), target, otherwise);
        } else {
            // Above it, or below: not greater than the last, and then at least the first.
            let inside = self.take_id();
            self.made.push(Step::condition(
                inside,
                (AT_LEAST, first),
                target,
                self.other,
            ));
            let above = self.compare_in_turn(rest);
            self.made[place] = Step::condition(id, (GREATER, last), above, Target::Step(inside));
        }
        Target::Step(id)
    }

    fn take_id(&mut self) -> usize {
        self.free += 1;
        self.free - 1
    }
}

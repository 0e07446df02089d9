//! Programs of system-call filters, as steps that know where they lead, and without detours.

use std::collections::BTreeMap;
use std::error::Error;

use seccompiler::{BpfProgram, sock_filter};

use crate::dispatch;

/// Codes of instructions (linux/bpf_common.h): those that seccompiler writes.
pub(crate) const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;
/// Of conditional jumps, the class.
const CLASS: u16 = 0x07;

/// Where an instruction leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Step(usize),
    Return(u32),
}

/// An instruction that is reached, with where it leads: if its condition is true or it has none, and if it is false.
pub(crate) struct Step {
    /// What it is called by targets.
    pub(crate) id: usize,
    pub(crate) code: u16,
    pub(crate) k: u32,
    pub(crate) then: Target,
    pub(crate) otherwise: Option<Target>,
    /// Its returns follow it, as those at the end are too far away.
    is_far: bool,
}

impl Step {
    /// One that goes to `then` if its condition holds.
    pub(crate) const fn condition(
        id: usize,
        (code, k): (u16, u32),
        then: Target,
        otherwise: Target,
    ) -> Self {
        Self {
            id,
            code,
            k,
            then,
            otherwise: Some(otherwise),
            is_far: false,
        }
    }
}

/// The same program without detours: jumps to jumps and to returns, loads of what is loaded, and what is not reached. The number
/// of a call is found by halves.
pub(crate) fn shorten(program: &BpfProgram) -> Result<BpfProgram, Box<dyn Error>> {
    let mut steps = dispatch::by_halves(reached(program), program.len());
    loop {
        let (shortened, far) = lay_out(&steps)?;
        match far {
            None => return Ok(shortened),
            Some(index) => steps[index].is_far = true,
        }
    }
}

/// Where `at` leads, when the word at offset `loaded` is loaded.
fn resolve(program: &BpfProgram, mut at: usize, loaded: Option<u32>) -> Target {
    loop {
        let sock_filter { code, k, .. } = program[at];
        match code {
            JUMP => at += 1 + k as usize,
            RETURN => return Target::Return(k),
            LOAD if loaded == Some(k) => at += 1,
            _ => return Target::Step(at),
        }
    }
}

fn reached(program: &BpfProgram) -> Vec<Step> {
    // By instruction: what is loaded when it is reached; the inner `None` is something unknown.
    let mut loaded: Vec<Option<Option<u32>>> = vec![None; program.len()];
    loaded[0] = Some(None);
    let mut steps = Vec::new();
    for at in 0..program.len() {
        let Some(before) = loaded[at] else {
            continue;
        };
        let sock_filter { code, jt, jf, k } = program[at];
        let after = match code {
            LOAD => Some(k),
            AND => None,
            _ => before,
        };
        let is_condition = code & CLASS == JUMP;
        let (then, otherwise) = match is_condition {
            true => (at + 1 + usize::from(jt), Some(at + 1 + usize::from(jf))),
            false => (at + 1, None),
        };
        let then = resolve(program, then, after);
        let otherwise = otherwise.map(|to| resolve(program, to, after));
        for target in [Some(then), otherwise].into_iter().flatten() {
            if let Target::Step(to) = target {
                // Jumps lead forward alone: all ways to an instruction are known before it is looked at.
                let known = loaded[to].get_or_insert(after);
                if *known != after {
                    *known = None;
                }
            }
        }
        steps.push(Step {
            id: at,
            code,
            k,
            then,
            otherwise,
            is_far: false,
        });
    }
    steps
}

/// The program of `steps`, and a step from which a return at the end is too far away.
fn lay_out(steps: &[Step]) -> Result<(BpfProgram, Option<usize>), Box<dyn Error>> {
    let own_returns = |step: &Step| match step.is_far {
        true => returns([Some(step.then), step.otherwise]),
        false => Vec::new(),
    };
    let mut places = BTreeMap::new();
    let mut end = 0;
    for step in steps {
        places.insert(step.id, end);
        end += 1 + own_returns(step).len();
    }
    let last = returns(
        steps
            .iter()
            .flat_map(|step| [Some(step.then), step.otherwise]),
    );
    let mut made = BpfProgram::new();
    for (index, step) in steps.iter().enumerate() {
        let here = made.len();
        let own = own_returns(step);
        let offset = |target: Target| match target {
            Target::Step(id) => places[&id] - here - 1,
            Target::Return(value) => {
                let own = own.iter().position(|own| *own == value);
                let last = last.iter().position(|last| *last == value);
                own.or(last.map(|last| end + last - here - 1)).unwrap_or(0)
            }
        };
        let Step { code, k, .. } = *step;
        let (then, otherwise) = (offset(step.then), step.otherwise.map(offset));
        let (jt, jf) = match otherwise {
            Some(otherwise) => match (u8::try_from(then), u8::try_from(otherwise)) {
                (Ok(jt), Ok(jf)) => (jt, jf),
                _ if !step.is_far => return Ok((made, Some(index))),
                _ => return Err("a list is too long for its jumps".into()),
            },
            // It goes on where it stands.
            None if then == 0 => (0, 0),
            None => return Err("what follows a step has been moved".into()),
        };
        made.push(sock_filter { code, jt, jf, k });
        made.extend(own.into_iter().map(return_of));
    }
    made.extend(last.into_iter().map(return_of));
    Ok((made, None))
}

/// The values that are returned, each once.
fn returns(targets: impl IntoIterator<Item = Option<Target>>) -> Vec<u32> {
    let mut values = Vec::new();
    for target in targets.into_iter().flatten() {
        if let Target::Return(value) = target
            && !values.contains(&value)
        {
            values.push(value);
        }
    }
    values
}

const fn return_of(k: u32) -> sock_filter {
    sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k,
    }
}

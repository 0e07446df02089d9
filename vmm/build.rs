//! Compiles the lists of system calls in `seccomp/` to BPF, one list a kind of thread: a start must not wait for that.
//!
//! The kernel checks and translates a program when it is installed, at half a microsecond an instruction, so they are made
//! short: seccompiler writes five for a call that is allowed, of which one is needed.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::{env, io};

use seccompiler::{BpfProgram, TargetArch, sock_filter};

/// Where the lists are.
const FOLDER: &str = "seccomp";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let arch = TargetArch::try_from(env::var("CARGO_CFG_TARGET_ARCH")?.as_str())?;
    let mut programs = BTreeMap::new();
    for path in lists()? {
        let compiled = compile(&path, arch);
        let (name, program) = compiled.map_err(|cause| format!("{}: {cause}", path.display()))?;
        programs.insert(name, shorten(&program)?);
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("filters.rs");
    fs::write(out, source(&programs)?)?;
    Ok(())
}

fn lists() -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(FOLDER)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
    paths.sort();
    Ok(paths)
}

/// The only list in the file, which is called like the thread.
fn compile(path: &Path, arch: TargetArch) -> Result<(String, BpfProgram), Box<dyn Error>> {
    let list = fs::read(path)?;
    let mut programs = seccompiler::compile_from_json(&list[..], arch)?.into_iter();
    match (programs.next(), programs.next()) {
        (Some(only), None) if path.file_stem().is_some_and(|stem| *stem == *only.0) => Ok(only),
        _ => Err("it has to hold one list, called as the file is".into()),
    }
}

/// A table of programs by their threads' names.
fn source(programs: &BTreeMap<String, BpfProgram>) -> Result<String, std::fmt::Error> {
    let mut text = "static COMPILED: &[(&str, &[sock_filter])] = &[\n".to_owned();
    for (name, program) in programs {
        writeln!(text, "({name:?}, &[")?;
        for step in program {
            let (code, jt, jf, k) = (step.code, step.jt, step.jf, step.k);
            writeln!(
                text,
                "sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},"
            )?;
        }
        text.push_str("]),\n");
    }
    text.push_str("];\n");
    Ok(text)
}

/// Codes of instructions (linux/bpf_common.h): those that seccompiler writes.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;
/// Of conditional jumps, the class.
const CLASS: u16 = 0x07;

/// Where an instruction leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Step(usize),
    Return(u32),
}

/// An instruction that is reached, with where it leads: if its condition is true or it has none, and if it is false.
struct Step {
    at: usize,
    then: Target,
    otherwise: Option<Target>,
    /// Its returns follow it, as those at the end are too far away.
    is_far: bool,
}

/// The same program without detours: jumps to jumps and to returns, loads of what is loaded, and what is not reached.
fn shorten(program: &BpfProgram) -> Result<BpfProgram, Box<dyn Error>> {
    let mut steps = reached(program);
    loop {
        let (shortened, far) = lay_out(program, &steps)?;
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
            at,
            then,
            otherwise,
            is_far: false,
        });
    }
    steps
}

/// The program of `steps`, and a step from which a return at the end is too far away.
fn lay_out(
    program: &BpfProgram,
    steps: &[Step],
) -> Result<(BpfProgram, Option<usize>), Box<dyn Error>> {
    let own_returns = |step: &Step| match step.is_far {
        true => returns([Some(step.then), step.otherwise]),
        false => Vec::new(),
    };
    let mut places = BTreeMap::new();
    let mut end = 0;
    for step in steps {
        places.insert(step.at, end);
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
            Target::Step(at) => places[&at] - here - 1,
            Target::Return(value) => {
                let own = own.iter().position(|own| *own == value);
                let last = last.iter().position(|last| *last == value);
                own.or(last.map(|last| end + last - here - 1)).unwrap_or(0)
            }
        };
        let sock_filter { code, k, .. } = program[step.at];
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

//! Compiles the lists of system calls in `seccomp/` to BPF, one list a kind of thread: a start must not wait for that.
//!
//! When a program is installed, the kernel checks and translates it, and runs it once for each number of a call, to know those
//! that are always allowed. So programs are made short, seccompiler writes five instructions for a call of which one is
//! needed, and find a number in a few steps instead of one by one.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::{env, io};

#[path = "build/dispatch.rs"]
mod dispatch;
#[path = "build/shorten.rs"]
mod shorten;

use seccompiler::{BpfProgram, TargetArch};

/// Where the lists are.
const FOLDER: &str = "seccomp";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    println!("cargo::rerun-if-changed=build");
    let arch = TargetArch::try_from(env::var("CARGO_CFG_TARGET_ARCH")?.as_str())?;
    let mut programs = BTreeMap::new();
    for path in lists()? {
        let compiled = compile(&path, arch);
        let (name, program) = compiled.map_err(|cause| format!("{}: {cause}", path.display()))?;
        programs.insert(name, shorten::shorten(&program)?);
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

//! Rules on single Rust files.

use super::Finding;
use super::source::{code_only, has_word};
use super::tree::{TextFile, Tree};

/// A longer file has more than one subject.
const LINES_MAX: usize = 700;

/// Macros that must not be left behind.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.with_extension("rs").flat_map(check_file).collect()
}

fn check_file(file: &TextFile) -> Vec<Finding> {
    let code = code_only(&file.text);
    let lines: Vec<&str> = code.lines().collect();
    let mut findings = Vec::new();
    if lines.len() > LINES_MAX {
        let message = format!(
            "{} lines, more than {LINES_MAX}: split it by subject",
            lines.len()
        );
        findings.push(Finding::new(&file.path, LINES_MAX + 1, message));
    }
    for (index, line) in lines.iter().enumerate() {
        let faults = [
            check_unsafe(&file.path, line),
            check_attribute(&lines[index..]),
            check_unfinished(line),
        ];
        let found = faults.into_iter().flatten();
        findings.extend(found.map(|message| Finding::new(&file.path, index + 1, message)));
    }
    findings.extend(check_import_order(&file.path, &lines));
    findings
}

fn check_unsafe(path: &str, line: &str) -> Option<String> {
    let is_allowed = path
        .split('/')
        .any(|part| part == "sys" || part == "sys.rs")
        || path.starts_with("guest-kernel/");
    (!is_allowed && has_word(line, "unsafe"))
        .then(|| "`unsafe` outside a `sys` module: move the operation there".to_owned())
}

/// Exceptions from lints are `#[expect(…, reason = "…")]`; only `mod sys` may say `allow(unsafe_code)`.
fn check_attribute(lines: &[&str]) -> Option<String> {
    let (first, rest) = lines.split_first()?;
    let start = first.find("#[").or_else(|| first.find("#!["))?;
    let attribute = &first[start..];
    if has_word(attribute, "allow") && attribute.contains("allow(") {
        let is_for_sys = attribute.contains("allow(unsafe_code)")
            && std::iter::once(&attribute)
                .chain(rest.first())
                .any(|line| line.contains("mod sys;"));
        return (!is_for_sys)
            .then(|| "`allow` of a lint: write `#[expect(…, reason = \"…\")]`".to_owned());
    }
    if !attribute.contains("expect(") {
        return None;
    }
    let whole: Vec<&str> = lines
        .iter()
        .scan(false, |done, line| {
            (!std::mem::replace(done, line.contains(")]"))).then_some(*line)
        })
        .collect();
    (!whole.join(" ").contains("reason ="))
        .then(|| "`#[expect]` without `reason = \"…\"`".to_owned())
}

fn check_unfinished(line: &str) -> Option<String> {
    let found = UNFINISHED.iter().find(|name| {
        has_word(line, name.trim_end_matches('!')) && line.contains(&format!("{name}("))
    })?;
    Some(format!("`{found}` left behind"))
}

/// Imports at the top: std, then other crates, then our own crate.
fn check_import_order(path: &str, lines: &[&str]) -> Option<Finding> {
    let mut rank_before = 0;
    for (index, line) in lines.iter().enumerate() {
        let declaration = line
            .trim_start_matches("pub(crate) ")
            .trim_start_matches("pub ");
        if let Some(name) = declaration.strip_prefix("use ") {
            let rank = import_rank(name);
            if rank < rank_before {
                let message = "imports go std, then other crates, then `crate`/`super`";
                return Some(Finding::new(path, index + 1, message));
            }
            rank_before = rank;
        } else if ["fn ", "struct ", "enum ", "impl ", "const ", "static "]
            .iter()
            .any(|item| declaration.starts_with(item))
        {
            break;
        }
    }
    None
}

fn import_rank(name: &str) -> u8 {
    match name.split([':', ';', ' ']).next().unwrap_or_default() {
        "std" | "core" | "alloc" => 0,
        "crate" | "super" | "self" => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str, expected: &[(usize, &str)]) {
        let findings = check(&Tree::of(&[(path, text)]));
        assert_eq!(findings.len(), expected.len(), "{text}: {findings:?}");
        for (finding, (line, part)) in findings.iter().zip(expected) {
            assert_eq!(finding.line, *line, "{text}");
            assert!(
                finding.message.contains(part),
                "{text}: {}",
                finding.message
            );
        }
    }

    #[test]
    fn unsafe_lives_in_sys_only() {
        check_one(
            "vmm/src/a.rs",
            "\nunsafe { f() }",
            &[(2, "outside a `sys`")],
        );
        check_one("vmm/src/sys/a.rs", "unsafe { f() }", &[]);
        check_one("tools/bench/src/sys.rs", "unsafe { f() }", &[]);
        check_one("guest-kernel/minimal/src/a.rs", "unsafe { f() }", &[]);
        check_one("vmm/src/a.rs", "// unsafe\n#![deny(unsafe_code)]", &[]);
        check_one(
            "vmm/src/system.rs",
            "unsafe { f() }",
            &[(1, "outside a `sys`")],
        );
    }

    #[test]
    fn lints_are_expected_with_a_reason() {
        check_one("a.rs", "#[allow(dead_code)]\nfn f() {}", &[(1, "`allow`")]);
        check_one(
            "a.rs",
            "#![cfg_attr(test, allow(dead_code))]",
            &[(1, "`allow`")],
        );
        check_one(
            "a.rs",
            "#[expect(dead_code)]\nfn f() {}",
            &[(1, "without `reason")],
        );
        check_one(
            "a.rs",
            "#[expect(dead_code, reason = \"later\")]\nfn f() {}",
            &[],
        );
        check_one(
            "a.rs",
            "#[expect(\n    dead_code,\n    reason = \"later\"\n)]\nfn f() {}",
            &[],
        );
        check_one("a.rs", "#[allow(unsafe_code)]\nmod sys;", &[]);
        check_one(
            "a.rs",
            "#[allow(unsafe_code)]\nmod other;",
            &[(1, "`allow`")],
        );
    }

    #[test]
    fn nothing_unfinished_is_left() {
        check_one("a.rs", "fn f() { todo!() }", &[(1, "`todo!`")]);
        check_one("a.rs", "fn f() { dbg!(1); }", &[(1, "`dbg!`")]);
        check_one("a.rs", "fn f() { my_todo!() } // todo!()", &[]);
    }

    #[test]
    fn long_files_are_named() {
        check_one("a.rs", &"\n".repeat(LINES_MAX), &[]);
        check_one(
            "a.rs",
            &"\n".repeat(LINES_MAX + 1),
            &[(LINES_MAX + 1, "split it")],
        );
    }

    #[test]
    fn imports_are_in_order() {
        check_one(
            "a.rs",
            "use std::io;\n\nuse libc::c_int;\n\nuse crate::a;",
            &[],
        );
        check_one("a.rs", "use crate::a;\nuse std::io;", &[(2, "imports go")]);
        check_one("a.rs", "use libc::c_int;\nfn f() {}\nuse std::io;", &[]);
    }
}

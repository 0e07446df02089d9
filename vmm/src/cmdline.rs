//! The kernel command line: the user's text, with what the machine adds before a stand-alone `--`.
//!
//! What follows a stand-alone `--` belongs to the guest's init and is passed on as it is. `--` inside a word
//! (`foo=x--y`) or at its start (`--flag`) is none.

use crate::arch::host::layout::CMDLINE_BYTES_MAX;

/// The command line is too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The kernel command line has {found} bytes with what LightV adds; at most {} are allowed; shorten boot-source.boot_args", CMDLINE_BYTES_MAX - 1)]
pub struct CmdlineTooLong {
    /// Its length in bytes.
    pub found: usize,
}

/// Joins the user's text and `additions`.
///
/// # Errors
/// [`CmdlineTooLong`].
pub fn assemble(user: &str, additions: &[String]) -> Result<String, CmdlineTooLong> {
    let (kernel_part, init_part) = split(user);
    let mut line = kernel_part.trim().to_owned();
    for addition in additions {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(addition);
    }
    if !init_part.is_empty() && !init_part.starts_with(char::is_whitespace) {
        line.push(' ');
    }
    line.push_str(init_part);
    if line.len() < CMDLINE_BYTES_MAX {
        Ok(line)
    } else {
        Err(CmdlineTooLong { found: line.len() })
    }
}

/// Puts `text` before a stand-alone `--` of `user`.
#[must_use]
pub fn append(user: &str, text: &str) -> String {
    let (kernel_part, init_part) = split(user);
    format!("{} {text}{init_part}", kernel_part.trim_end())
}

/// The text for the kernel, and the rest from the white space before a stand-alone `--` on.
fn split(user: &str) -> (&str, &str) {
    let mut start = 0;
    for word in user.split(char::is_whitespace) {
        if word == "--" {
            let cut = user
                .get(..start)
                .map_or(0, |before| before.trim_end().len());
            return user.split_at_checked(cut).unwrap_or((user, ""));
        }
        // White space is ASCII or longer: advance over the word and the one character after it.
        start += word.len();
        start += user
            .get(start..)
            .and_then(|rest| rest.chars().next())
            .map_or(0, char::len_utf8);
    }
    (user, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(user: &str, expected: &str) {
        assert_eq!(
            assemble(user, &["x=1".into(), "y=2".into()]).unwrap(),
            expected,
            "{user:?}"
        );
    }

    #[test]
    fn additions_stand_before_a_stand_alone_double_dash() {
        check(
            "console=ttyS0 reboot=k panic=1 -- a b=c",
            "console=ttyS0 reboot=k panic=1 x=1 y=2 -- a b=c",
        );
        check(
            "init=/init -- --flag1 --flag2",
            "init=/init x=1 y=2 -- --flag1 --flag2",
        );
        check("foo=x--y", "foo=x--y x=1 y=2");
        check("--flag a", "--flag a x=1 y=2");
        check("a -- b -- c", "a x=1 y=2 -- b -- c");
        check("a --", "a x=1 y=2 --");
        check("-- a", "x=1 y=2 -- a");
        check("", "x=1 y=2");
        check("  a   --  two  spaces ", "a x=1 y=2   --  two  spaces ");
    }

    #[test]
    fn too_long_a_line_is_refused() {
        assert_eq!(
            assemble(&"a".repeat(2047), &[]).map(|line| line.len()),
            Ok(2047)
        );
        assert_eq!(
            assemble(&"a".repeat(2048), &[]),
            Err(CmdlineTooLong { found: 2048 })
        );
    }

    #[test]
    fn text_is_appended_for_the_kernel() {
        assert_eq!(append("a -- b", "c"), "a c -- b");
        assert_eq!(append("a", "c"), "a c");
    }
}

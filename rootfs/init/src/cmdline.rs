//! What the agent reads of the kernel's command line.

use lightv_contract::control;

/// Address of the control device in the text of `/proc/cmdline`; `None` when none is named or it is no hexadecimal number.
#[must_use]
pub fn control_address(cmdline: &str) -> Option<u64> {
    let value = cmdline
        .split_ascii_whitespace()
        // What follows is for init, not for the kernel.
        .take_while(|word| *word != "--")
        .filter_map(|word| word.strip_prefix(control::PARAMETER)?.strip_prefix('='))
        .last()?;
    u64::from_str_radix(value.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_last_one_before_the_dashes() {
        for (cmdline, expected) in [
            (
                "quiet lightv.control=0xc0000000 reboot=k\n",
                Some(0xc000_0000),
            ),
            ("lightv.control=0x1000 lightv.control=0x2000", Some(0x2000)),
            (
                "lightv.control=0x1000 -- lightv.control=0x2000",
                Some(0x1000),
            ),
            ("lightv.control=4096", None),
            ("lightv.control=0xzz", None),
            ("lightv.controls=0x1000", None),
            ("", None),
        ] {
            assert_eq!(control_address(cmdline), expected, "{cmdline}");
        }
    }
}

//! Who listens: `/proc/net/tcp` and `/proc/net/tcp6` (Documentation/networking/proc_net_tcp.rst).

/// State of a socket that listens.
const LISTEN: &str = "0A";

/// Whether `table` has a socket that listens on `port`, of whatever address.
#[must_use]
pub fn has_listener(table: &str, port: u16) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().and_then(|local| local.rsplit_once(':'));
        let found = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        found == Some(port) && fields.nth(1) == Some(LISTEN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_on_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 0 0 0 1\n   \
            1: 0100007F:0050 0200007F:1F91 01 00000000:00000000 00:00000000 0 0 0 2\n   \
            2: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A\n";
        for (port, expected) in [(8080, true), (22, true), (80, false), (8081, false)] {
            assert_eq!(has_listener(table, port), expected, "{port}");
        }
        assert!(!has_listener("", 0) && !has_listener("0: 1:1", 1));
    }
}

//! Messages of route netlink (Documentation/userspace-api/netlink, rtnetlink(7)), put into one buffer and sent at once: one
//! system call for all. The kernel answers those that fail.

use std::net::Ipv4Addr;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
/// Type of an answer that carries an error number.
const ERROR: u16 = 2;

const REQUEST: u16 = 1;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

const FAMILY_IPV4: u8 = 2;
const HEADER_BYTES: usize = 16;

/// Requests, numbered from 0.
#[derive(Debug, Default)]
pub struct Requests {
    bytes: Vec<u8>,
    count: u32,
}

impl Requests {
    /// As they are sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Brings the interface `index` up.
    pub fn bring_up(&mut self, index: u32) {
        const UP: u32 = 1;
        let start = self.begin(NEW_LINK, 0);
        // ifinfomsg: family, padding, type; index, flags, which flags are meant.
        self.bytes.extend([0; 4]);
        self.numbers(&[index, UP, UP]);
        self.end(start);
    }

    /// Gives the interface `index` an address.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) {
        let start = self.begin(NEW_ADDRESS, CREATE | REPLACE);
        self.address(index, address, prefix);
        // A network of one or two addresses has no broadcast (RFC 3021).
        if prefix < 31 {
            const BROADCAST: u16 = 4;
            let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let all = Ipv4Addr::from_bits(address.to_bits() | hosts);
            self.attribute(BROADCAST, &all.octets());
        }
        self.end(start);
    }

    /// Takes an address away, and with it the routes that need it.
    pub fn delete_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) {
        let start = self.begin(DELETE_ADDRESS, 0);
        self.address(index, address, prefix);
        self.end(start);
    }

    /// Makes `gateway` the default route, by the interface `index`.
    pub fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) {
        const MAIN_TABLE: u8 = 254;
        const BY_BOOT: u8 = 3;
        const UNICAST: u8 = 1;
        // The gateway is on the link even when the prefix does not say so (an address with /32).
        const ON_LINK: u32 = 4;
        const GATEWAY: u16 = 5;
        const INTERFACE: u16 = 4;
        let start = self.begin(NEW_ROUTE, CREATE | REPLACE);
        // rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type; flags.
        self.bytes
            .extend([FAMILY_IPV4, 0, 0, 0, MAIN_TABLE, BY_BOOT, 0, UNICAST]);
        self.numbers(&[ON_LINK]);
        self.attribute(GATEWAY, &gateway.octets());
        self.attribute(INTERFACE, &index.to_ne_bytes());
        self.end(start);
    }

    /// ifaddrmsg: family, prefix, flags, scope; index; and the address.
    fn address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) {
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        self.bytes.extend([FAMILY_IPV4, prefix, 0, 0]);
        self.numbers(&[index]);
        self.attribute(LOCAL, &address.octets());
        self.attribute(ADDRESS, &address.octets());
    }

    /// Writes a header, whose length comes at the end.
    fn begin(&mut self, kind: u16, flags: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.numbers(&[self.count, 0]);
        self.count += 1;
        start
    }

    fn end(&mut self, start: usize) {
        let length = u32::try_from(self.bytes.len() - start).unwrap_or_default();
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn numbers(&mut self, numbers: &[u32]) {
        let bytes = numbers.iter().flat_map(|number| number.to_ne_bytes());
        self.bytes.extend(bytes);
    }

    /// All of ours are four bytes long, so nothing has to be padded.
    fn attribute(&mut self, kind: u16, value: &[u8; 4]) {
        self.bytes.extend(8_u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
    }
}

/// The errors in a datagram of answers: number of the request, and `errno`.
#[must_use]
pub fn errors(mut answers: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while let Some((header, _)) = answers.split_first_chunk::<HEADER_BYTES>() {
        let number = |at: usize| {
            let word = answers.get(at..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*word))
        };
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if let (ERROR, Some(request), Some(code)) = (kind, number(8), number(HEADER_BYTES)) {
            let errno = code.cast_signed().wrapping_neg();
            if errno != 0 {
                found.push((request, errno));
            }
        }
        let length = number(0).and_then(|length| usize::try_from(length).ok());
        let step = length.filter(|length| *length >= HEADER_BYTES);
        let rest = step.and_then(|step| answers.get(step.next_multiple_of(4)..));
        answers = rest.unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    #[test]
    fn an_address_is_a_message_as_rtnetlink_has_it() {
        let mut requests = Requests::default();
        requests.add_address(2, ADDRESS, 24);
        let expected: &[u8] = &[
            48, 0, 0, 0, 20, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, // header
            2, 24, 0, 0, 2, 0, 0, 0, // ifaddrmsg
            8, 0, 2, 0, 10, 0, 0, 2, 8, 0, 1, 0, 10, 0, 0, 2, 8, 0, 4, 0, 10, 0, 0, 255,
        ];
        assert_eq!(requests.as_bytes(), expected);
    }

    #[test]
    fn messages_follow_each_other_and_are_counted() {
        let mut requests = Requests::default();
        requests.bring_up(1);
        requests.delete_address(2, ADDRESS, 32);
        requests.add_default_route(2, ADDRESS);
        let bytes = requests.as_bytes();
        let mut at = 0;
        for (number, length) in [(0_u8, 32_usize), (1, 40), (2, 44)] {
            assert_eq!(usize::from(bytes[at]), length, "{number}");
            assert_eq!(bytes[at + 8], number);
            at += length;
        }
        assert_eq!(at, bytes.len());
    }

    #[test]
    fn errors_are_found_in_answers() {
        let answer = |request: u32, code: i32| {
            let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0];
            bytes.extend(request.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        let two = [answer(1, -17), answer(2, 0), answer(3, -19)].concat();
        assert_eq!(errors(&two), [(1, 17), (3, 19)]);
        assert_eq!(errors(&two[..20]), [(1, 17)]);
        assert_eq!(errors(&[0; 40]), []);
        assert_eq!(errors(&[]), []);
    }
}

//! ARP announcements (RFC 5227, 2.3): who else is on the link learns that an address is here now.

use std::net::Ipv4Addr;

/// An Ethernet frame to all that announces `address` at `hardware`.
#[must_use]
pub fn announcement(hardware: [u8; 6], address: Ipv4Addr) -> [u8; 42] {
    const TO_ALL: [u8; 6] = [0xff; 6];
    // Ethernet type ARP; then Ethernet and IPv4 with addresses of 6 and 4 bytes, a request.
    const ARP_REQUEST: [u8; 10] = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    let address = address.octets();
    let parts: [&[u8]; 7] = [
        &TO_ALL,
        &hardware,
        &ARP_REQUEST,
        &hardware,
        &address,
        &[0; 6],
        &address,
    ];
    let mut frame = [0; 42];
    for (to, byte) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *byte;
    }
    frame
}

/// The address in `/sys/class/net/*/address`: `02:00:00:00:00:01`.
#[must_use]
pub fn parse_hardware(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.trim_end().split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_and_target_are_the_announced_address() {
        let hardware = [2, 0, 0, 0, 0, 9];
        let frame = announcement(hardware, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(frame[6..12], hardware);
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[28..32], [10, 0, 0, 2]);
        assert_eq!(frame[38..], [10, 0, 0, 2]);
    }

    #[test]
    fn hardware_addresses_are_six_bytes() {
        assert_eq!(
            parse_hardware("02:00:00:00:00:fF\n"),
            Some([2, 0, 0, 0, 0, 255])
        );
        for text in ["", "02:00", "02:00:00:00:00:00:00", "x2:00:00:00:00:00"] {
            assert_eq!(parse_hardware(text), None, "{text}");
        }
    }
}

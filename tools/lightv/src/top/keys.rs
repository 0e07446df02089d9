//! Keys, of the bytes that a terminal sends for them (ECMA-48, and xterm's ctlseqs).
//!
//! crossterm's own reader is not used: it waits with edge-triggered epoll, and loses a key that comes together with a change of
//! the terminal's size.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

const ESC: u8 = 0x1b;
/// A sequence that is longer is none.
const SEQUENCE_MAX: usize = 32;

/// What was read and is no whole key yet.
#[derive(Debug, Default)]
pub(super) struct Keys {
    rest: Vec<u8>,
}

impl Keys {
    /// The keys that end with `bytes`. An ESC at their end is the key of that name.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<KeyEvent> {
        self.rest.extend_from_slice(bytes);
        let mut keys = Vec::new();
        let mut place = 0;
        while let Some((key, length)) = first_key(&self.rest[place..]) {
            keys.extend(key);
            place += length;
        }
        self.rest.drain(..place);
        keys
    }
}

/// The first key, unless it is none that means something here, and of how many bytes it is; `None` where more have to come.
fn first_key(bytes: &[u8]) -> Option<(Option<KeyEvent>, usize)> {
    let plain = |code| Some(KeyEvent::from(code));
    match *bytes {
        [] => None,
        [ESC, b'[', ..] => sequence(bytes),
        [ESC, b'O'] => None,
        [ESC, b'O', last, ..] => Some((cursor_key(last).and_then(plain), 3)),
        [ESC, ..] => Some((plain(KeyCode::Esc), 1)),
        [b'\r' | b'\n', ..] => Some((plain(KeyCode::Enter), 1)),
        [0x7f | 0x08, ..] => Some((plain(KeyCode::Backspace), 1)),
        [control @ 0x01..=0x1a, ..] => {
            let letter = KeyCode::Char(char::from(control - 1 + b'a'));
            Some((Some(KeyEvent::new(letter, KeyModifiers::CONTROL)), 1))
        }
        [0x00..=0x1f, ..] => Some((None, 1)),
        [first, ..] => {
            let length = match first {
                0xc0..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf7 => 4,
                _ => 1,
            };
            let letter = std::str::from_utf8(bytes.get(..length)?);
            match letter.ok().and_then(|letter| letter.chars().next()) {
                Some(letter) => Some((plain(KeyCode::Char(letter)), length)),
                None => Some((None, 1)),
            }
        }
    }
}

/// `ESC [`, numbers, and a last letter.
fn sequence(bytes: &[u8]) -> Option<(Option<KeyEvent>, usize)> {
    let body = bytes.get(2..)?;
    let Some(length) = body.iter().position(|byte| !(0x20..=0x3f).contains(byte)) else {
        let is_none = bytes.len() > SEQUENCE_MAX;
        return is_none.then_some((None, bytes.len()));
    };
    let (numbers, last) = (body.get(..length)?, *body.get(length)?);
    let first_number = numbers.split(|byte| *byte == b';').next();
    let key = match (last, first_number) {
        (b'~', Some(b"1" | b"7")) => Some(KeyCode::Home),
        (b'~', Some(b"4" | b"8")) => Some(KeyCode::End),
        (b'~', Some(b"5")) => Some(KeyCode::PageUp),
        (b'~', Some(b"6")) => Some(KeyCode::PageDown),
        (last, _) => cursor_key(last),
    };
    Some((key.map(KeyEvent::from), length + 3))
}

const fn cursor_key(last: u8) -> Option<KeyCode> {
    match last {
        b'A' => Some(KeyCode::Up),
        b'B' => Some(KeyCode::Down),
        b'C' => Some(KeyCode::Right),
        b'D' => Some(KeyCode::Left),
        b'H' => Some(KeyCode::Home),
        b'F' => Some(KeyCode::End),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<KeyCode> {
        let keys = Keys::default().read(bytes).into_iter();
        keys.map(|key| key.code).collect()
    }

    #[test]
    fn keys_are_what_terminals_send_for_them() {
        use KeyCode::{
            Backspace, Char, Down, End, Enter, Esc, Home, Left, PageDown, PageUp, Right, Up,
        };
        for (bytes, expected) in [
            (
                &b"/web\r"[..],
                &[Char('/'), Char('w'), Char('e'), Char('b'), Enter][..],
            ),
            (b"\x1b", &[Esc]),
            (b"\x1bq", &[Esc, Char('q')]),
            (b"\x1b[A\x1b[B\x1b[C\x1b[D", &[Up, Down, Right, Left]),
            (b"\x1bOA\x1bOF\x1bOH", &[Up, End, Home]),
            (
                b"\x1b[5~\x1b[6~\x1b[1~\x1b[4~\x1b[H",
                &[PageUp, PageDown, Home, End, Home],
            ),
            (b"\x1b[1;5A", &[Up]),
            (b"\x1b[200~x", &[Char('x')]),
            (b"\x7f\x08", &[Backspace, Backspace]),
            ("ü→𝄞".as_bytes(), &[Char('ü'), Char('→'), Char('𝄞')]),
            (b"\xffa\xc3(", &[Char('a'), Char('(')]),
            (b"\x00\x1c", &[]),
        ] {
            assert_eq!(keys(bytes), expected, "{bytes:?}");
        }
        let control = Keys::default().read(b"\x03\x1a");
        assert_eq!(control[0], KeyEvent::new(Char('c'), KeyModifiers::CONTROL));
        assert_eq!(control[1], KeyEvent::new(Char('z'), KeyModifiers::CONTROL));
    }

    #[test]
    fn a_key_may_come_in_pieces() {
        let mut keys = Keys::default();
        assert!(keys.read(b"\x1b[").is_empty() && keys.read(b"5").is_empty());
        assert_eq!(keys.read(b"~")[0].code, KeyCode::PageUp);
        assert!(keys.read(b"\xe2\x86").is_empty());
        assert_eq!(keys.read(b"\x92")[0].code, KeyCode::Char('→'));
    }

    #[test]
    fn what_never_ends_is_not_kept() {
        let mut keys = Keys::default();
        let _ = keys.read(b"\x1b[");
        for _ in 0..100 {
            let _ = keys.read(b"1;1;1;");
            assert!(keys.rest.len() <= SEQUENCE_MAX + 6);
        }
    }
}

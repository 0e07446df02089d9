//! Output of a program as lines of JSON: text where it is text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lightv_api::agent::exec::ExecLine;

use crate::limits;

/// Makes a line of a text.
type Kind = fn(String) -> ExecLine;

/// Lines that were not sent yet, and the beginnings of characters whose ends have not come.
#[derive(Debug, Default)]
pub struct OutputLines {
    lines: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl OutputLines {
    /// Adds standard output.
    pub fn add_stdout(&mut self, bytes: &[u8]) {
        let kinds: (Kind, Kind) = (ExecLine::Stdout, ExecLine::StdoutBase64);
        add(&mut self.stdout, bytes, kinds, &mut self.lines);
    }

    /// Adds standard error.
    pub fn add_stderr(&mut self, bytes: &[u8]) {
        let kinds: (Kind, Kind) = (ExecLine::Stderr, ExecLine::StderrBase64);
        add(&mut self.stderr, bytes, kinds, &mut self.lines);
    }

    /// Whether there is as much as is sent at a time.
    #[must_use]
    pub fn is_much(&self) -> bool {
        self.lines.len() >= limits::EXEC_PIECE_BYTES
    }

    /// What is to be sent; maybe nothing.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.lines)
    }

    /// The rest, and `last`.
    #[must_use]
    pub fn end(mut self, last: &ExecLine) -> Vec<u8> {
        let rests: [(Vec<u8>, Kind); 2] = [
            (self.stdout, ExecLine::StdoutBase64),
            (self.stderr, ExecLine::StderrBase64),
        ];
        for (rest, of_bytes) in rests {
            if !rest.is_empty() {
                put(&mut self.lines, &of_bytes(STANDARD.encode(rest)));
            }
        }
        put(&mut self.lines, last);
        self.lines
    }
}

/// Adds to `lines` what `kept` and `bytes` are together; keeps the beginning of a character.
fn add(kept: &mut Vec<u8>, bytes: &[u8], (of_text, of_bytes): (Kind, Kind), lines: &mut Vec<u8>) {
    for piece in bytes.chunks(limits::EXEC_LINE_BYTES) {
        kept.extend_from_slice(piece);
        let text_length = match str::from_utf8(kept) {
            Ok(text) => Some(text.len()),
            Err(error) if error.error_len().is_none() => Some(error.valid_up_to()),
            Err(_) => None,
        };
        let text_length = text_length.filter(|_| !kept.contains(&0));
        let whole: Vec<u8> = kept.drain(..text_length.unwrap_or(kept.len())).collect();
        if whole.is_empty() {
            continue;
        }
        let line = match text_length.and_then(|_| String::from_utf8(whole.clone()).ok()) {
            Some(text) => of_text(text),
            None => of_bytes(STANDARD.encode(whole)),
        };
        put(lines, &line);
    }
}

fn put(lines: &mut Vec<u8>, line: &ExecLine) {
    // Our own types are always JSON.
    lines.extend(serde_json::to_vec(line).unwrap_or_default());
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use lightv_api::agent::exec::ExecEnd;

    use super::*;

    const END: ExecLine = ExecLine::Ended(ExecEnd {
        exit_code: 0,
        timed_out: false,
    });

    /// The lines of standard output that comes in `pieces`, without the last line.
    fn lines(pieces: &[&[u8]]) -> Vec<ExecLine> {
        let mut output = OutputLines::default();
        for piece in pieces {
            output.add_stdout(piece);
        }
        let text = String::from_utf8(output.end(&END)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let mut lines: Vec<ExecLine> = lines.collect();
        assert_eq!(lines.pop(), Some(END));
        lines
    }

    fn text(text: &str) -> ExecLine {
        ExecLine::Stdout(text.to_owned())
    }

    fn bytes(bytes: &[u8]) -> ExecLine {
        ExecLine::StdoutBase64(STANDARD.encode(bytes))
    }

    #[test]
    fn characters_are_whole_however_they_come() {
        assert_eq!(lines(&[b"a\n\"b\""]), [text("a\n\"b\"")]);
        assert_eq!(lines(&["ü".as_bytes()]), [text("ü")]);
        assert_eq!(lines(&[b"a\xc3", b"\xbcb"]), [text("a"), text("üb")]);
        assert_eq!(lines(&[b"\xf0", b"\x9f", b"\x9a\x80"]), [text("🚀")]);
        assert_eq!(lines(&[]), []);
    }

    #[test]
    fn what_is_no_text_keeps_its_bytes() {
        assert_eq!(lines(&[b"a\xffb"]), [bytes(b"a\xffb")]);
        assert_eq!(lines(&[b"a\0b"]), [bytes(b"a\0b")]);
        // The end of its last character never comes.
        assert_eq!(lines(&[b"a\xc3"]), [text("a"), bytes(b"\xc3")]);
        assert_eq!(lines(&[b"\xc3", b"a"]), [bytes(b"\xc3a")]);
    }

    #[test]
    fn long_output_is_many_lines_each_with_a_limit() {
        let long = "ü".repeat(limits::EXEC_LINE_BYTES);
        let found = lines(&[format!("x{long}").as_bytes()]);
        assert_eq!(found.len(), 3);
        let joined: String = found
            .iter()
            .map(|line| match line {
                ExecLine::Stdout(text) => text.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(joined, format!("x{long}"));
        let mut output = OutputLines::default();
        output.add_stderr(&vec![1; limits::EXEC_LINE_BYTES]);
        assert!(output.is_much());
        // Each byte may be six letters.
        assert!(output.take().len() < 6 * limits::EXEC_LINE_BYTES + 32);
        assert!(!output.is_much());
    }
}

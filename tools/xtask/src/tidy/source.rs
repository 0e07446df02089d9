//! Rust source without its comments and texts, so that rules see only code.

/// Replaces comments and the contents of string and character literals by spaces; lines stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let mut scanner = Scanner {
        rest: text,
        code: String::with_capacity(text.len()),
    };
    while let Some(next) = scanner.rest.chars().next() {
        scanner.step(next);
    }
    scanner.code
}

/// Whether `word` stands in `code` with no letter, digit or `_` beside it.
pub(super) fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

struct Scanner<'a> {
    rest: &'a str,
    code: String,
}

impl Scanner<'_> {
    fn step(&mut self, next: char) {
        if self.rest.starts_with("//") {
            let len = self.rest.find('\n').unwrap_or(self.rest.len());
            self.blank(len);
        } else if self.rest.starts_with("/*") {
            self.blank(block_comment_len(self.rest));
        } else if let Some(len) = raw_string_len(self.rest, self.code.chars().next_back()) {
            self.blank(len);
        } else if next == '"' {
            self.blank(quoted_len(self.rest, '"'));
        } else if next == '\'' && is_char_literal(self.rest) {
            self.blank(quoted_len(self.rest, '\''));
        } else {
            self.code.push(next);
            self.rest = &self.rest[next.len_utf8()..];
        }
    }

    fn blank(&mut self, len: usize) {
        let (gone, rest) = self.rest.split_at(len);
        self.code
            .extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }
}

fn block_comment_len(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length of `r"…"`, `r#"…"#`, `br"…"` at the start of `text`.
fn raw_string_len(text: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let after_r = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let after_hashes = after_r.trim_start_matches('#');
    let body = after_hashes.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(after_r.len() - after_hashes.len()));
    let body_len = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + body_len)
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' {
            is_escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

/// `'a'` and `'\n'` are characters, `'a` is a lifetime.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let code = code_only(text);
        assert_eq!(
            code.split_whitespace().collect::<Vec<_>>().join(" "),
            expected,
            "{text}"
        );
        assert_eq!(
            code.matches('\n').count(),
            text.matches('\n').count(),
            "{text}"
        );
    }

    #[test]
    fn comments_and_texts_are_blanked() {
        check("a // unsafe\nb", "a b");
        check("a /* x /* unsafe */ y\n */ b", "a b");
        check(r#"f("unsafe \" still", b)"#, "f( , b)");
        check("f(r#\"a \" unsafe\"#, b)", "f( , b)");
        check("bar\"x\" y", "bar y");
        check("let c = '\"'; d", "let c = ; d");
        check("let c = '\\''; d", "let c = ; d");
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe { x }", "unsafe"));
        assert!(!has_word("deny(unsafe_code)", "unsafe"));
        assert!(!has_word("my_unsafe", "unsafe"));
    }
}

//! Rust source as far as the tree's checks need it: code without comments and literals, and its words.
//!
//! Not a parser. It knows exactly the tokens that could hide code or pretend to be some: line and nested block
//! comments, strings with and without hashes, characters against lifetimes.

/// `source` with every comment, string and character literal blanked. Line breaks stay, so line numbers hold.
pub fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    let mut word_before = false;
    while let Some(next) = rest.chars().next() {
        let taken = hidden_length(rest, word_before);
        let (token, after) = rest.split_at(taken.unwrap_or(next.len_utf8()));
        match taken {
            Some(_) => code.extend(token.chars().map(|c| if c == '\n' { '\n' } else { ' ' })),
            None => code.push_str(token),
        }
        word_before = taken.is_none() && is_word(next);
        rest = after;
    }
    code
}

/// The identifiers of code that [`code_of`] returned, each with its line (from 1) and what stands before and
/// after it.
pub fn words_of(code: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while let Some(next) = code[at..].chars().next() {
        if is_word(next) {
            let length = code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at);
            let (before, after) = (code[..at].trim_end(), code[at + length..].trim_start());
            words.push(Word { text: &code[at..at + length], line, before, after });
            at += length;
        } else {
            line += usize::from(next == '\n');
            at += next.len_utf8();
        }
    }
    words
}

/// One identifier.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    /// Itself.
    pub text: &'a str,
    /// Counted from 1.
    pub line: usize,
    /// All code before it, without the blanks in between.
    pub before: &'a str,
    /// All code after it, likewise.
    pub after: &'a str,
}

impl Word<'_> {
    /// Whether a path begins with this word: `word::...` or `::word::...`, but not `x::word::...` or `x.word`.
    pub fn begins_path(&self) -> bool {
        let inside = match self.before.strip_suffix("::") {
            Some(before) => before.ends_with(|c| is_word(c) || c == '>'),
            None => self.before.ends_with('.'),
        };
        self.after.starts_with("::") && !inside
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The bytes of the comment or literal that `rest` begins with.
fn hidden_length(rest: &str, word_before: bool) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment_length(rest));
    }
    if rest.starts_with('"') {
        return Some(string_length(rest));
    }
    if rest.starts_with('\'') {
        return character_length(rest);
    }
    if word_before {
        return None; // `r"` and `b"` begin a literal only where a word begins
    }
    let prefix = ["br", "cr", "r", "b", "c"].into_iter().find(|prefix| {
        let after = rest.strip_prefix(prefix);
        after.is_some_and(|after| after.trim_start_matches('#').starts_with('"'))
    })?;
    let body = &rest[prefix.len()..];
    let hashes = body.find('"')?;
    if hashes == 0 && !prefix.ends_with('r') {
        return Some(prefix.len() + string_length(body));
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let open = prefix.len() + hashes + 1;
    Some(rest[open..].find(&end).map_or(rest.len(), |at| open + at + end.len()))
}

fn block_comment_length(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `'x'` and `'\n'`, but not the lifetime `'x`.
fn character_length(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next()?; // what is escaped may itself be a quote
        return chars.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: nothing inside comments and literals counts as code. Method: the word hidden in each kind.
    #[test]
    fn comments_and_literals_are_blank() {
        let hiding = [
            "// hidden",
            "/* hidden /* hidden */ hidden */",
            "\"hidden \\\" hidden\"",
            "r#\"hidden \" hidden\"#",
            "b\"hidden\"",
            "br##\"hidden\"# hidden\"##",
            "'\\''; // hidden",
            "'\"'; \"hidden\"",
        ];
        for source in hiding {
            let source = format!("let seen = {source}\n;shown()");
            let code = code_of(&source);
            assert!(!code.contains("hidden"), "{source}: {code}");
            assert!(code.contains("shown()") && code.contains("let seen"), "{source}: {code}");
            assert_eq!(code.lines().count(), source.lines().count());
        }
    }

    /// Goal: code is not swallowed. Method: lifetimes, and words that end like a literal's prefix.
    #[test]
    fn lifetimes_are_code() {
        assert_eq!(code_of("fn f<'a>(x: &'a str) -> &'a str"), "fn f<'a>(x: &'a str) -> &'a str");
        assert_eq!(code_of("for_r r(1)"), "for_r r(1)");
        assert_eq!(code_of("x = 'a'; y"), "x =    ; y");
    }

    /// Goal: a path's first word is told from the others. Method: the same word in both places.
    #[test]
    fn paths() {
        let code = "use bdev::io;\ncrate::bdev::x();\nlet bdev = 1;";
        let found: Vec<_> =
            words_of(code).iter().filter(|w| w.text == "bdev").map(|w| (w.line, w.begins_path())).collect();
        assert_eq!(found, [(1, true), (2, false), (3, false)]);
    }
}

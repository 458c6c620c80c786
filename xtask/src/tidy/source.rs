//! A Rust file with everything that is not code taken out, so that the rules do not stumble over a
//! brace in a string or a word in a comment. Not a parser: it knows comments, strings, characters
//! and lifetimes, and nothing else.

/// One Rust file.
#[derive(Debug)]
pub struct Source {
    /// The text with comments, strings and characters blanked; lines stay where they are.
    pub code: String,
    /// String literals (as written, quotes included) with the line, from 1, they begin on.
    pub strings: Vec<(usize, String)>,
}

impl Source {
    /// Reads a file's text. Total: broken code gives some result.
    pub fn read(text: &str) -> Self {
        let mut code = String::with_capacity(text.len());
        let mut strings = Vec::new();
        let mut line = 1;
        let mut rest = text;
        // Whether the last character could be part of a name: `r` in `for"` begins no raw string.
        let mut in_name = false;
        while let Some(first) = rest.chars().next() {
            let (length, is_string) = match string_length(rest, in_name) {
                Some(length) => (length, true),
                None => (blank_length(rest).unwrap_or(0), false),
            };
            if length == 0 {
                code.push(first);
                line += usize::from(first == '\n');
                in_name = first.is_alphanumeric() || first == '_';
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let (blanked, behind) = rest.split_at(length);
            if is_string {
                strings.push((line, blanked.to_owned()));
            }
            code.extend(blanked.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            line += blanked.matches('\n').count();
            in_name = false;
            rest = behind;
        }
        Self { code, strings }
    }
}

/// Length of the string literal that `rest` begins with, its prefix included.
fn string_length(rest: &str, in_name: bool) -> Option<usize> {
    if rest.starts_with('"') {
        return Some(quoted_length(rest, '"'));
    }
    if in_name {
        return None;
    }
    let prefix = ["br", "cr", "r", "b", "c"].into_iter().find(|prefix| rest.starts_with(prefix))?;
    let behind = &rest[prefix.len()..];
    if !prefix.ends_with('r') {
        return behind.starts_with('"').then(|| prefix.len() + quoted_length(behind, '"'));
    }
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    let body = behind[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let open = prefix.len() + hashes + 1;
    Some(body.find(&end).map_or(rest.len(), |at| open + at + end.len()))
}

/// Length of the comment or character literal that `rest` begins with.
fn blank_length(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(comment_length(rest));
    }
    let mut behind = rest.strip_prefix('\'')?.chars();
    match (behind.next()?, behind.next()) {
        ('\\', _) => Some(quoted_length(rest, '\'')),
        (character, Some('\'')) => Some(character.len_utf8() + 2),
        // A lifetime.
        _ => None,
    }
}

/// Length up to the closing quote, backslashes respected.
fn quoted_length(rest: &str, quote: char) -> usize {
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            character if character == quote => return at + quote.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Length of a block comment; they nest.
fn comment_length(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, code: &str, strings: &[&str]) {
        let source = Source::read(text);
        assert_eq!(source.code, code, "{text:?}");
        let found: Vec<&str> = source.strings.iter().map(|(_, literal)| literal.as_str()).collect();
        assert_eq!(found, strings, "{text:?}");
    }

    #[test]
    fn strings_of_every_form_are_taken_out() {
        check(r#"a("{\"")b"#, "a(     )b", &[r#""{\"""#]);
        check(r###"r#"a"b"# c"###, "         c", &[r###"r#"a"b"#"###]);
        check(r#"b"x" br"\" y"#, &format!("{}y", " ".repeat(11)), &[r#"b"x""#, r#"br"\""#]);
        check("for\"x\"", "for   ", &["\"x\""]);
        check("\"open", "     ", &["\"open"]);
    }

    #[test]
    fn comments_are_taken_out_and_lines_kept() {
        check("a // { \"\nb", "a       \nb", &[]);
        check("a /* /* { */ \n */ b", "a            \n    b", &[]);
    }

    #[test]
    fn characters_are_taken_out_and_lifetimes_kept() {
        check("'{' 'a 'ä' '\\'' b", "    'a          b", &[]);
        check("<'a>(x: &'a str)", "<'a>(x: &'a str)", &[]);
        check("r#fn b'{'", "r#fn b   ", &[]);
    }

    #[test]
    fn a_string_knows_its_line() {
        let source = Source::read("/*\n*/\n\"a\nb\"\n\"c\"");
        assert_eq!(source.strings, [(3, "\"a\nb\"".to_owned()), (5, "\"c\"".to_owned())]);
    }
}

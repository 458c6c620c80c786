//! Who may use a collector's API, and how far: tokens, of which only hashes are stored.
//!
//! A token is 256 random bits, so that SHA-256 is enough to store it by: there is nothing to guess
//! that is likelier than anything else, which is what slow hashes for passwords are against. Who reads
//! the file learns names and roles, and no token; so it may be readable by all, and only its owner
//! may write it.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use wire::text::{NAME_RULE, is_name};

use crate::{NoRandom, random, sha256};

/// What the holder of a token may do. Each may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Sees status, metrics, alerts, flows and DNS records: who talked to whom, and no contents.
    Viewer,
    /// Sees the contents of captured frames as well. Each such look is an audit record.
    Analyst,
    /// May change something.
    Admin,
}

impl Access {
    /// The words that [`FromStr`] reads.
    pub const WORDS: [&'static str; 3] = ["viewer", "analyst", "admin"];
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Viewer => "viewer",
            Self::Analyst => "analyst",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Access {
    type Err = UnknownAccess;

    fn from_str(text: &str) -> Result<Self, UnknownAccess> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "analyst" => Ok(Self::Analyst),
            "admin" => Ok(Self::Admin),
            _ => Err(UnknownAccess { text: text.to_owned() }),
        }
    }
}

/// The text names no kind of access.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is none of viewer, analyst, admin")]
pub struct UnknownAccess {
    /// The text.
    pub text: String,
}

/// One token, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is; a rule like that of sensors' names.
    pub name: String,
    /// What it is good for.
    pub access: Access,
    /// SHA-256 of the token.
    digest: [u8; 32],
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Last second in which it is good; `None`: until it is revoked.
    pub until: Option<i64>,
}

/// The tokens of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(Vec<Token>);

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others than its owner could add tokens.
    #[error("{path} may be written by others (mode {mode:04o}); run: chmod go-w {path}", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A line is none of a token.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

impl Tokens {
    /// Reads a file of tokens.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let unreadable = |source| TokenError::Unreadable { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(TokenError::Exposed { path: path.to_owned(), mode });
        }
        Self::parse(&text).map_err(|(line, problem)| TokenError::Line {
            path: path.to_owned(),
            line,
            problem,
        })
    }

    /// Reads the text of such a file: `NAME ACCESS SHA256 CREATED UNTIL` a line, times in seconds
    /// since 1970, `-` for no end. Empty lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// The first line that is wrong, and why.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut tokens = Self::default();
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let token = parse_line(line).map_err(|problem| (index + 1, problem))?;
            if tokens.0.iter().any(|other| other.name == token.name) {
                return Err((index + 1, format!("a second token called {}", token.name)));
            }
            tokens.0.push(token);
        }
        Ok(tokens)
    }

    /// The text of a file with these tokens.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = HEAD.to_owned();
        for Token { name, access, digest, created, until } in &self.0 {
            let until = until.map_or_else(|| "-".to_owned(), |until| until.to_string());
            text += &format!("{name} {access} {} {created} {until}\n", hex(digest));
        }
        text
    }

    /// Makes a token, and gives what its holder has to show. It stands nowhere else.
    ///
    /// # Errors
    /// The name is taken or none, or the system gives no random numbers.
    pub fn create(
        &mut self,
        name: &str,
        access: Access,
        created: i64,
        until: Option<i64>,
    ) -> Result<String, CreateError> {
        if !is_name(name) {
            return Err(CreateError::Name(name.to_owned()));
        }
        if self.0.iter().any(|token| token.name == name) {
            return Err(CreateError::Taken(name.to_owned()));
        }
        let secret = format!("{PREFIX}{}", hex(&random::<32>()?));
        let digest = sha256(secret.as_bytes());
        self.0.push(Token { name: name.to_owned(), access, digest, created, until });
        Ok(secret)
    }

    /// Takes a token out; false if there is none of that name.
    pub fn revoke(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|token| token.name != name);
        self.0.len() != before
    }

    /// The token that somebody shows, if it is one of these and has not expired.
    #[must_use]
    pub fn find(&self, shown: &str, now: i64) -> Option<&Token> {
        // What the time of the comparison tells is about the hash, of which nobody can choose a byte.
        let digest = sha256(shown.as_bytes());
        let token = self.0.iter().find(|token| token.digest == digest)?;
        token.until.is_none_or(|until| now <= until).then_some(token)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Token] {
        &self.0
    }
}

/// Why a token was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// Not a name.
    #[error("name {0:?} is none: {NAME_RULE}")]
    Name(String),
    /// There is one of that name.
    #[error("there is a token called {0} already; revoke it first, or choose another name")]
    Taken(String),
    /// The system gives no random numbers.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

fn parse_line(line: &str) -> Result<Token, String> {
    let words: Vec<&str> = line.split(' ').collect();
    let &[name, access, digest, created, until] = words.as_slice() else {
        return Err(format!("{} words instead of five", words.len()));
    };
    if !is_name(name) {
        return Err(format!("name {name:?} is none: {NAME_RULE}"));
    }
    let seconds =
        |text: &str| text.parse::<i64>().map_err(|_| format!("{text:?} is no time in seconds"));
    Ok(Token {
        name: name.to_owned(),
        access: access.parse().map_err(|error: UnknownAccess| error.to_string())?,
        digest: unhex(digest).ok_or("no SHA-256 of 64 hexadecimal digits")?,
        created: seconds(created)?,
        until: if until == "-" { None } else { Some(seconds(until)?) },
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Tokens begin with this, so that who finds one in a log or a repository knows what it is.
const PREFIX: &str = "rwt_";
const HEAD: &str = "# Tokens of a Ringwatch collector's API, of which only hashes stand here. Written by \
                    `ringwatch token`.\n# name access sha256 created until\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Tokens, String, String) {
        let mut tokens = Tokens::default();
        let viewer = tokens.create("board", Access::Viewer, 100, None).unwrap();
        let analyst = tokens.create("anna", Access::Analyst, 100, Some(200)).unwrap();
        (tokens, viewer, analyst)
    }

    #[test]
    fn a_token_is_found_by_what_its_holder_shows_until_it_expires() {
        let (tokens, viewer, analyst) = two();
        assert_eq!(tokens.find(&viewer, 1 << 40).unwrap().name, "board");
        assert_eq!(tokens.find(&analyst, 200).unwrap().access, Access::Analyst);
        assert_eq!(tokens.find(&analyst, 201), None);
        assert_eq!(tokens.find("", 0), None);
        assert_eq!(tokens.find(&viewer.to_uppercase(), 0), None);
    }

    #[test]
    fn a_file_holds_no_token_and_is_read_as_it_was_written() {
        let (tokens, viewer, analyst) = two();
        let text = tokens.render();
        assert!(!text.contains(&viewer) && !text.contains(viewer.trim_start_matches(PREFIX)));
        assert!(!text.contains(analyst.trim_start_matches(PREFIX)));
        assert_eq!(Tokens::parse(&text), Ok(tokens));
    }

    #[test]
    fn names_are_given_once_and_can_be_taken_back() {
        let (mut tokens, viewer, _) = two();
        let again = tokens.create("board", Access::Admin, 1, None);
        assert_eq!(again, Err(CreateError::Taken("board".into())));
        assert!(tokens.revoke("board") && !tokens.revoke("board"));
        assert_eq!(tokens.find(&viewer, 0), None);
        assert!(matches!(tokens.create("A b", Access::Admin, 1, None), Err(CreateError::Name(_))));
    }

    #[test]
    fn lines_that_are_no_token_are_named() {
        let digest = "0".repeat(64);
        for (line, part) in [
            ("a viewer".to_owned(), "2 words instead of five"),
            (format!("A viewer {digest} 1 -"), "is none"),
            (format!("a root {digest} 1 -"), "none of viewer"),
            (format!("a viewer {}é 1 -", "0".repeat(62)), "no SHA-256"),
            (format!("a viewer {digest} x -"), "no time"),
            (format!("a viewer {digest} 1 -\na admin {digest} 1 -"), "second token"),
        ] {
            let (_, problem) = Tokens::parse(&format!("# head\n\n{line}\n")).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn a_file_that_others_can_write_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, two().0.render()).unwrap();
        for (mode, is_taken) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match Tokens::read(&path) {
                Ok(_) => assert!(is_taken, "{mode:o}"),
                Err(error) => {
                    let remedy = format!("run: chmod go-w {}", path.display());
                    assert!(!is_taken && error.to_string().contains(&remedy), "{error}");
                }
            }
        }
    }
}

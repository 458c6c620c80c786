//! Who may see what: one layer in front of every route.
//!
//! ```text
//!   request ──▶ token? ──▶ what does the path need? ──▶ contents of frames? audit record ──▶ handler
//!                401              403                         503 if it cannot be written
//! ```
//!
//! Without a file of tokens, which only an API on loopback may lack, whoever asks is a viewer: the same
//! that every local user could see before there were tokens. Contents of frames need a token always,
//! because the store's files are not for every local user either.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use trust::Stamp;
use trust::tokens::{Access, TokenError, Tokens};

use super::now_seconds;
use crate::audit::{Audit, Look, Outcome};

/// What stands in front of the routes.
pub struct Gate {
    tokens: Option<Mutex<TokenFile>>,
    audit: Audit,
}

/// Who asks, for handlers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the token; `local` without a file of tokens.
    pub name: String,
    /// What it is good for.
    pub access: Access,
}

/// The address of who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// What a path needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing: who is not known learns no more than whether all is well.
    Nothing,
    /// A token that is good for this.
    Token(Access),
    /// A token of an analyst, and an audit record.
    Contents,
}

/// What each path needs. One that is not listed is for administrators: whoever adds a route has to
/// say here who may use it.
fn need_of(path: &str) -> Need {
    const VIEWER: [&str; 5] =
        ["/metrics", "/api/v1/status", "/api/v1/alerts", "/api/v1/flows", "/api/v1/dns"];
    const CONTENTS: [&str; 1] = ["/api/v1/frames"];
    let is_under = |root: &&str| {
        path.strip_prefix(*root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if path == "/healthz" {
        Need::Nothing
    } else if VIEWER.iter().any(is_under) {
        Need::Token(Access::Viewer)
    } else if CONTENTS.iter().any(is_under) {
        Need::Contents
    } else {
        Need::Token(Access::Admin)
    }
}

impl Gate {
    /// A gate that asks for a token of this file, if there is one.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn open(tokens: Option<PathBuf>, audit: Audit) -> Result<Self, TokenError> {
        let tokens = tokens.map(TokenFile::open).transpose()?.map(Mutex::new);
        Ok(Self { tokens, audit })
    }

    /// Who shows this in the header `Authorization`.
    fn caller(&self, shown: Option<&str>) -> Option<Caller> {
        let Some(file) = &self.tokens else {
            return Some(Caller { name: "local".to_owned(), access: Access::Viewer });
        };
        let token = shown?.strip_prefix("Bearer ")?.trim();
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.look(Instant::now());
        let found = file.tokens.find(token, now_seconds())?;
        Some(Caller { name: found.name.clone(), access: found.access })
    }

    fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }
}

/// The layer.
pub async fn check(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let need = need_of(request.uri().path());
    let shown = request.headers().get(header::AUTHORIZATION);
    let caller = gate.caller(shown.and_then(|shown| shown.to_str().ok()));
    if need == Need::Nothing {
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        return next.run(request).await;
    }
    let Some(caller) = caller else {
        const HELP: &str = "a token is needed: Authorization: Bearer TOKEN; `ringwatch token create` \
                            makes one\n";
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], HELP)
            .into_response();
    };
    let needed = match need {
        Need::Token(access) => access,
        _ => Access::Analyst,
    };
    let is_allowed = caller.access >= needed;
    // Without tokens nobody is known and nobody gets contents: no line to fill the disk with.
    if need == Need::Contents && gate.has_tokens() {
        let outcome = if is_allowed { Outcome::Allowed } else { Outcome::Refused };
        let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|info| info.0.0);
        let look = Look {
            caller: &caller.name,
            access: caller.access,
            peer,
            method: request.method().as_str(),
            path: request.uri().path(),
            query: request.uri().query().unwrap_or_default(),
            outcome,
        };
        let line = gate.audit.line(&look);
        let own = Arc::clone(&gate);
        // A disk that does not answer holds up nobody else: others ask whether all is well.
        let written = tokio::task::spawn_blocking(move || own.audit.write(&line)).await;
        if let Err(error) = written.unwrap_or_else(|gone| Err(io::Error::other(gone))) {
            tracing::error!(%error, caller = caller.name, "cannot write the audit record");
            let why = "the audit record cannot be written, so nothing is shown\n";
            return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
        }
    }
    if !is_allowed {
        let remedy = match gate.has_tokens() {
            true => "",
            false => "; name a file of tokens in [api] tokens of collector.toml",
        };
        let why = format!("{} is {}, this needs {needed}{remedy}\n", caller.name, caller.access);
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// A file of tokens, read anew when it changes.
struct TokenFile {
    path: PathBuf,
    tokens: Tokens,
    stamp: Option<Stamp>,
    looked: Instant,
}

impl TokenFile {
    fn open(path: PathBuf) -> Result<Self, TokenError> {
        let stamp = Stamp::of(&path);
        let tokens = Tokens::read(&path)?;
        Ok(Self { path, tokens, stamp, looked: Instant::now() })
    }

    /// Reads the file if it changed. One that is no good is said once, and those before stay good.
    fn look(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked) < LOOK_EVERY {
            return;
        }
        self.looked = now;
        let stamp = Stamp::of(&self.path);
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        match Tokens::read(&self.path) {
            Ok(tokens) => {
                tracing::info!(tokens = tokens.all().len(), "tokens were read anew");
                self.tokens = tokens;
            }
            Err(error) => {
                tracing::error!(%error, "changed tokens are no good; those before stay good");
            }
        }
    }
}

/// Time between two looks at the file of tokens.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::listener::{self, Bounds};
    use super::*;

    #[test]
    fn every_path_says_what_it_needs_and_others_are_for_administrators() {
        for (path, need) in [
            ("/healthz", Need::Nothing),
            ("/metrics", Need::Token(Access::Viewer)),
            ("/api/v1/status", Need::Token(Access::Viewer)),
            ("/api/v1/alerts/7", Need::Token(Access::Viewer)),
            ("/api/v1/frames", Need::Contents),
            ("/api/v1/frames/7", Need::Contents),
            ("/api/v1/alertsx", Need::Token(Access::Admin)),
            ("/api/v1/new", Need::Token(Access::Admin)),
            ("/", Need::Token(Access::Admin)),
        ] {
            assert_eq!(need_of(path), need, "{path}");
        }
    }

    /// A router with the routes of frames and status behind the gate, and what it answers.
    struct Site {
        folder: tempfile::TempDir,
        address: SocketAddr,
        secrets: Vec<String>,
    }

    /// Answers with the name of who asks, behind the gate, until the test ends.
    async fn serve(listener: std::net::TcpListener, gate: Gate) {
        let who = |request: Request| async move {
            let caller = request.extensions().get::<Caller>();
            caller.map_or_else(|| "nobody".to_owned(), |caller| caller.name.clone())
        };
        let mut router = axum::Router::new();
        for path in ["/healthz", "/api/v1/status", "/api/v1/frames"] {
            router = router.route(path, axum::routing::get(who));
        }
        let router =
            router.route_layer(axum::middleware::from_fn_with_state(Arc::new(gate), check));
        let shared =
            crate::status::Shared::new("ids".into(), wire::units::UnixNanos(0), "/".into());
        // Kept, so that nobody takes it for a stop.
        let (_stopping, until) = tokio::sync::watch::channel(false);
        let (shared, bounds) = (Arc::new(shared), Bounds::default());
        listener::serve(listener, None, router, shared, bounds, until).await.unwrap();
    }

    impl Site {
        fn new(has_tokens: bool) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tokens");
            let mut tokens = Tokens::default();
            let make =
                |access: &str| tokens.create(access, access.parse().unwrap(), 0, None).unwrap();
            let secrets = Access::WORDS.map(make).to_vec();
            std::fs::write(&path, tokens.render()).unwrap();
            let audit = Audit::new(folder.path().join("audit.json"), "ids".into());
            let gate = Gate::open(has_tokens.then_some(path), audit).unwrap();
            let listener = super::super::bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(serve(listener, gate));
            });
            Self { folder, address, secrets }
        }

        fn ask(&self, path: &str, authorization: Option<&str>) -> (u16, String) {
            let head = authorization.map(|text| format!("Authorization: {text}\r\n"));
            let head = head.unwrap_or_default();
            let mut stream = std::net::TcpStream::connect(self.address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{head}Connection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
        }

        fn audit(&self) -> Vec<serde_json::Value> {
            let path = self.folder.path().join("audit.json");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    #[test]
    fn each_role_sees_what_it_may_and_contents_leave_a_record() {
        let site = Site::new(true);
        for (secret, name, frames) in [(0, "viewer", 403), (1, "analyst", 200), (2, "admin", 200)] {
            let bearer = format!("Bearer {}", site.secrets[secret]);
            assert_eq!(site.ask("/api/v1/status", Some(&bearer)), (200, name.to_owned()));
            let (status, body) = site.ask("/api/v1/frames?host=192.0.2.1", Some(&bearer));
            assert_eq!(status, frames, "{body}");
        }
        let audit = site.audit();
        let seen: Vec<_> = audit
            .iter()
            .map(|line| {
                let detail = &line["ringwatch"];
                (detail["caller"].as_str().unwrap(), detail["outcome"].as_str().unwrap())
            })
            .collect();
        let expected = [("viewer", "refused"), ("analyst", "allowed"), ("admin", "allowed")];
        assert_eq!(seen, expected);
        assert_eq!(audit[1]["ringwatch"]["query"], "host=192.0.2.1");
        assert_eq!(audit[1]["ringwatch"]["path"], "/api/v1/frames");
        let peer = audit[1]["ringwatch"]["peer"].as_str().unwrap();
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    }

    #[test]
    fn without_a_token_only_health_is_told() {
        let site = Site::new(true);
        let upper = format!("Bearer {}", site.secrets[2].to_uppercase());
        let bare = site.secrets[2].clone();
        for shown in [None, Some("Bearer "), Some("Basic YTpi"), Some(&*upper), Some(&*bare)] {
            assert_eq!(site.ask("/api/v1/status", shown).0, 401, "{shown:?}");
            assert_eq!(site.ask("/api/v1/frames", shown).0, 401, "{shown:?}");
            assert_eq!(site.ask("/healthz", shown).0, 200, "{shown:?}");
        }
        assert_eq!(site.audit().len(), 0, "whoever is not known fills no disk");
    }

    #[test]
    fn without_a_file_of_tokens_who_asks_is_a_viewer() {
        let site = Site::new(false);
        assert_eq!(site.ask("/api/v1/status", None), (200, "local".to_owned()));
        let (status, why) = site.ask("/api/v1/frames", None);
        assert_eq!(status, 403);
        assert!(why.contains("this needs analyst; name a file of tokens"), "{why}");
        assert_eq!(site.audit().len(), 0);
    }

    #[test]
    fn contents_are_not_shown_if_nobody_can_know_it_later() {
        let site = Site::new(true);
        std::fs::create_dir(site.folder.path().join("audit.json")).unwrap();
        let bearer = format!("Bearer {}", site.secrets[1]);
        assert_eq!(site.ask("/api/v1/frames", Some(&bearer)).0, 503);
        assert_eq!(site.ask("/api/v1/status", Some(&bearer)).0, 200);
    }

    #[test]
    fn while_the_disk_of_the_audit_records_hangs_others_are_answered() {
        let site = Site::new(true);
        let audit = site.folder.path().join("audit.json");
        // To open it waits for a reader.
        nix::unistd::mkfifo(&audit, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let bearer = format!("Bearer {}", site.secrets[1]);
        std::thread::scope(|scope| {
            let hangs = scope.spawn(|| site.ask("/api/v1/frames", Some(&bearer)));
            std::thread::sleep(Duration::from_millis(200));
            let asks = scope.spawn(|| site.ask("/healthz", None).0);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !asks.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let (is_answered, is_shown) = (asks.is_finished(), hangs.is_finished());
            // Lets all go on, whatever was found.
            drop(std::fs::File::open(&audit).unwrap());
            assert!(is_answered);
            assert!(!is_shown, "contents before the record");
        });
    }

    #[test]
    fn tokens_are_taken_back_by_the_file_and_a_broken_one_changes_nothing() {
        let site = Site::new(true);
        let path = site.folder.path().join("tokens");
        let bearer = format!("Bearer {}", site.secrets[0]);
        let ask = || {
            std::thread::sleep(LOOK_EVERY);
            site.ask("/api/v1/status", Some(&bearer)).0
        };
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writeln!(file, "broken").unwrap();
        assert_eq!(ask(), 200);
        let mut tokens = Tokens::default();
        tokens.create("other", Access::Viewer, 0, None).unwrap();
        std::fs::write(&path, tokens.render()).unwrap();
        assert_eq!(ask(), 401);
    }
}

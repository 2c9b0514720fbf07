//! The check of a request: its host, its origin, its token. A page of another site reads nothing.
//!
//! *Runs on:* the thread `stall-serve`; the user's thread makes the token.
//! *Must not:* tell by the time it takes how much of a wrong token is right.
//!
//! A browser sends requests for any site that it shows. `Host` refuses those of a site whose name
//! leads to this machine, `Origin` and `Sec-Fetch-Site` those of all others. `/metrics` and
//! `/health/live` are open to every origin: their clients are no browsers, and a browser gives
//! their answers to no other site.

use hyper::header::{self, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{StatusCode, Uri};
use sha2::{Digest as _, Sha256};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

/// The longest path with its query. The longest token fits in.
const LONGEST_PATH: usize = 1024;
const SHORTEST_TOKEN: usize = 16;
const LONGEST_TOKEN: usize = 256;
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// A secret that opens the server, as digests: of itself, and of the cookie made of it.
#[derive(Clone)]
pub(crate) struct ServeToken {
    digest: [u8; 32],
    cookie: String,
}

impl fmt::Debug for ServeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServeToken(…)")
    }
}

impl ServeToken {
    /// Takes a token, or says why it cannot be one.
    pub(crate) fn new(token: &str) -> Result<ServeToken, &'static str> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        match token.len() {
            0 => Err("is empty"),
            length if length < SHORTEST_TOKEN => Err("has less than 16 characters"),
            length if length > LONGEST_TOKEN => Err("has more than 256 characters"),
            _ if !token.bytes().all(is_plain) => {
                Err("has characters other than letters, digits and - . _ ~ + / =")
            }
            _ => Ok(ServeToken {
                digest: digest("", token),
                cookie: hexadecimal(&digest("cookie ", token)),
            }),
        }
    }

    fn is(&self, given: &str) -> bool {
        is_same(&self.digest, &digest("", given))
    }

    /// The value is compared by its digest, so that the time tells nothing of it.
    fn has_cookie(&self, given: &str) -> bool {
        is_same(&digest("", &self.cookie), &digest("", given))
    }
}

fn digest(purpose: &str, text: &str) -> [u8; 32] {
    let hash = Sha256::new().chain_update(purpose).chain_update(text);
    hash.finalize().into()
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

/// Compares digests in constant time.
fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let difference = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// The decision about a request.
#[derive(Debug, PartialEq)]
pub(super) enum Admission {
    Welcome,
    /// The token has come in the address. The cookie takes its place.
    SetCookie(String),
    Refused(StatusCode, &'static str),
}

/// The rules for requests of one server.
#[derive(Debug)]
pub(super) struct Access {
    /// Whether only programs of this machine can connect, a browser among them.
    is_loopback: bool,
    token: Option<ServeToken>,
    /// The name of the cookie. Cookies of all ports of a host are one set, hence the port.
    cookie: String,
}

impl Access {
    pub(super) fn new(address: SocketAddr, token: Option<ServeToken>) -> Access {
        Access {
            is_loopback: address.ip().is_loopback(),
            token,
            cookie: format!("tokio_stall_{}", address.port()),
        }
    }

    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Admission {
        let path = uri.path();
        if let Some((status, why)) = self.refusal(uri, headers) {
            return Admission::Refused(status, why);
        }
        let Some(token) = self.token.as_ref().filter(|_| path != "/health/live") else {
            return Admission::Welcome;
        };
        if self.has_token(token, headers) {
            return Admission::Welcome;
        }
        let given = token_in_query(uri).filter(|_| path == "/");
        if given.is_some_and(|given| token.is(given)) {
            let (name, value) = (&self.cookie, &token.cookie);
            let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict");
            return Admission::SetCookie(cookie);
        }
        Admission::Refused(
            StatusCode::UNAUTHORIZED,
            "a token is needed: send `Authorization: Bearer …`, or open `/?token=…` once\n",
        )
    }

    fn refusal(&self, uri: &Uri, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
        let path = uri.path();
        if path.len() + uri.query().map_or(0, str::len) > LONGEST_PATH {
            return Some((StatusCode::URI_TOO_LONG, "the address is too long\n"));
        }
        if headers.get_all(HOST).iter().count() > 1 {
            return Some((StatusCode::BAD_REQUEST, "one Host is enough\n"));
        }
        if self.is_loopback && !is_of_this_machine(headers) {
            let why = "ask by the address, or by localhost\n";
            return Some((StatusCode::MISDIRECTED_REQUEST, why));
        }
        let is_open = matches!(path, "/metrics" | "/health/live");
        let why = "a page of another site asks; enter the address by hand\n";
        (!is_open && is_from_elsewhere(headers)).then_some((StatusCode::FORBIDDEN, why))
    }

    fn has_token(&self, token: &ServeToken, headers: &HeaderMap) -> bool {
        let texts = |name| {
            let values = headers.get_all(name).into_iter();
            values.filter_map(|value| value.to_str().ok())
        };
        let mut cookies = texts(header::COOKIE).flat_map(|cookies| cookies.split(';'));
        let is_ours = |cookie: &str| {
            let (name, value) = cookie.trim().split_once('=').unwrap_or_default();
            name == self.cookie && token.has_cookie(value)
        };
        let is_bearer = |value: &str| {
            let (scheme, given) = value.split_once(' ').unwrap_or_default();
            scheme.eq_ignore_ascii_case("bearer") && token.is(given.trim())
        };
        texts(header::AUTHORIZATION).any(is_bearer) || cookies.any(is_ours)
    }
}

fn token_in_query(uri: &Uri) -> Option<&str> {
    let mut parts = uri.query()?.split('&');
    parts.find_map(|part| part.strip_prefix("token="))
}

fn authority(headers: &HeaderMap, name: HeaderName) -> Option<Result<Authority, ()>> {
    let value = headers.get(name)?.to_str().map_err(|_| ());
    Some(value.and_then(|value| value.parse().map_err(|_| ())))
}

/// Whether the request names this machine. A page from elsewhere can have its own name lead here,
/// and a browser would let it read the answers. It cannot ask by an address, or by `localhost`.
fn is_of_this_machine(headers: &HeaderMap) -> bool {
    match authority(headers, HOST) {
        None => true,
        Some(Err(())) => false,
        Some(Ok(authority)) => {
            let host = authority.host().trim_matches(['[', ']']);
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
        }
    }
}

/// Whether a browser says that another site asks. Other ports of this machine are the same site,
/// and another origin: their links may lead here, and nothing else.
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let is = |name: HeaderName, value: &str| headers.get(name).is_some_and(|is| is == value);
    let is_link = is(SEC_FETCH_MODE, "navigate");
    let is_other = is(SEC_FETCH_SITE, "cross-site") || is(SEC_FETCH_SITE, "same-site") && !is_link;
    is_other
        || headers.get_all(ORIGIN).iter().any(|origin| {
            let origin = origin.to_str().unwrap_or_default();
            let origin = origin.split_once("://").map(|(_, authority)| authority);
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            origin
                .zip(host)
                .is_none_or(|(origin, host)| !origin.eq_ignore_ascii_case(host))
        })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use hyper::Request;

    const TOKEN: &str = "0123456789abcdef";

    fn access(address: &str, token: Option<&str>) -> Access {
        let token = token.map(|token| ServeToken::new(token).unwrap());
        Access::new(address.parse().unwrap(), token)
    }

    fn check(access: &Access, path: &str, headers: &[(&str, &str)]) -> Admission {
        let request = Request::get(path);
        let with = |request: hyper::http::request::Builder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        let request = headers.iter().fold(request, with);
        let request = request.body(()).unwrap();
        access.check(request.uri(), request.headers())
    }

    fn status(access: &Access, path: &str, headers: &[(&str, &str)]) -> u16 {
        match check(access, path, headers) {
            Admission::Welcome => 200,
            Admission::SetCookie(_) => 303,
            Admission::Refused(status, why) => {
                assert!(why.ends_with('\n'));
                status.as_u16()
            }
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let access = access("127.0.0.1:9464", None);
        let host = ("host", "localhost:9464");
        for (header, expected) in [
            (("accept", "*/*"), 200),
            (("origin", "http://localhost:9464"), 200),
            (("origin", "http://localhost:3000"), 403),
            (("origin", "http://evil.example"), 403),
            (("origin", "null"), 403),
            (("origin", "http://localhost:9464.evil.example"), 403),
            (("sec-fetch-site", "same-origin"), 200),
            (("sec-fetch-site", "none"), 200),
            (("sec-fetch-site", "cross-site"), 403),
            (("sec-fetch-site", "same-site"), 403),
        ] {
            for path in ["/", "/events", "/stalls", "/nothing"] {
                assert_eq!(
                    status(&access, path, &[host, header]),
                    expected,
                    "{header:?}"
                );
            }
            for path in ["/metrics", "/health/live"] {
                assert_eq!(status(&access, path, &[host, header]), 200, "{header:?}");
            }
        }
        let link = [
            host,
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-mode", "navigate"),
        ];
        assert_eq!(status(&access, "/", &link), 200);
        assert_eq!(status(&access, "/", &[host, host]), 400);
        let long = format!("/{}", "x".repeat(LONGEST_PATH));
        assert_eq!(status(&access, &long, &[host]), 414);
    }

    #[test]
    fn a_token_opens_all_and_health_needs_none() {
        let access = access("0.0.0.0:9464", Some(TOKEN));
        let bearer = |token: &str| format!("Bearer {token}");
        let (right, wrong) = (bearer(TOKEN), bearer("0123456789abcdeg"));
        for path in ["/", "/metrics", "/events", "/stalls", "/nothing"] {
            assert_eq!(status(&access, path, &[]), 401);
            assert_eq!(status(&access, path, &[("authorization", &wrong)]), 401);
            assert_eq!(status(&access, path, &[("authorization", &right)]), 200);
        }
        assert_eq!(status(&access, "/health/live", &[]), 200);
        assert_eq!(status(&access, "/?token=wrong", &[]), 401);
        assert_eq!(status(&access, &format!("/stalls?token={TOKEN}"), &[]), 401);
    }

    #[test]
    fn the_token_in_the_address_becomes_a_cookie() {
        let access = access("0.0.0.0:9464", Some(TOKEN));
        let verdict = check(&access, &format!("/?token={TOKEN}"), &[]);
        let Admission::SetCookie(cookie) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(cookie.starts_with("tokio_stall_9464="), "{cookie}");
        assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
        assert!(!cookie.contains(TOKEN), "{cookie}");
        let (pair, _) = cookie.split_once(';').unwrap();
        let pair = format!("other=1; {pair}");
        assert_eq!(status(&access, "/events", &[("cookie", &pair)]), 200);
        let foreign = pair.replace("9464", "9465");
        assert_eq!(status(&access, "/events", &[("cookie", &foreign)]), 401);
    }

    #[test]
    fn a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused() {
        for token in [
            "",
            "short",
            "0123456789 abcdef",
            "0123456789abcdef;",
            "0123456789äbcdef",
        ] {
            assert!(ServeToken::new(token).is_err(), "{token}");
        }
        assert!(ServeToken::new(&"x".repeat(257)).is_err());
        let token = ServeToken::new(TOKEN).unwrap();
        assert!(!format!("{token:?}").contains(TOKEN));
    }
}

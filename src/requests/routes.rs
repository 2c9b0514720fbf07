//! Routes as small numbers: the names of requests in marks, metrics and reports.
//!
//! *Runs on:* the thread that calls the service. A route's first request on a thread
//! allocates; later ones find it in a table of their thread.
//!
//! Names are never freed, so their number and length are limited. Further routes share one name.

use crate::slot::names::{self, Name};
use crate::tally::OTHER;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Routes with a name of their own.
const ROUTES: usize = 128;
/// The longest path with a name of its own, in bytes.
const LONGEST_PATH: usize = 256;

/// A route, by its place in the table. The last place is for all further ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Route(u16);

/// The names of routes, in the order of their first requests.
static NAMES: [OnceLock<&'static str>; ROUTES] = [const { OnceLock::new() }; ROUTES];

thread_local! {
    /// The routes that this thread has met: by method, then by path.
    static KNOWN: RefCell<Vec<(&'static str, HashMap<String, Route>)>> =
        const { RefCell::new(Vec::new()) };
}

impl Route {
    /// All places: the named routes, and one for the others.
    pub(crate) const PLACES: usize = ROUTES + 1;
    const OTHER: Route = Route(ROUTES as u16);

    /// The route of requests with this method to this path, as in `GET /users/{id}`.
    ///
    /// # Cost
    ///
    /// A hash of the path.
    pub(crate) fn of(method: &http::Method, path: &str) -> Route {
        let method = name_of(method);
        let known = KNOWN.try_with(|known| {
            let known = known.try_borrow().ok()?;
            let paths = known.iter().find(|(known, _)| *known == method);
            paths.and_then(|(_, paths)| paths.get(path).copied())
        });
        known.ok().flatten().unwrap_or_else(|| learn(method, path))
    }

    /// The route in a place.
    pub(crate) fn at(place: usize) -> Route {
        u16::try_from(place).map_or(Route::OTHER, Route)
    }

    pub(crate) fn place(self) -> usize {
        usize::from(self.0)
    }

    /// The name, as in `GET /users/{id}`; `other` beyond the limit.
    pub(crate) fn name(self) -> &'static str {
        let named = NAMES.get(self.place()).and_then(OnceLock::get);
        named.copied().unwrap_or(OTHER)
    }

    /// The number of the name, for a mark.
    pub(super) fn mark(self) -> u32 {
        names::number(Name::Text(self.name()))
    }
}

/// The name of a method. A client can send any, so those that no standard knows share one.
fn name_of(method: &http::Method) -> &'static str {
    match *method {
        http::Method::GET => "GET",
        http::Method::POST => "POST",
        http::Method::PUT => "PUT",
        http::Method::DELETE => "DELETE",
        http::Method::HEAD => "HEAD",
        http::Method::OPTIONS => "OPTIONS",
        http::Method::CONNECT => "CONNECT",
        http::Method::PATCH => "PATCH",
        http::Method::TRACE => "TRACE",
        _ => "OTHER",
    }
}

/// Gives a route that is new to this thread its number.
#[cold]
fn learn(method: &'static str, path: &str) -> Route {
    if path.len() > LONGEST_PATH {
        return Route::OTHER;
    }
    let route = numbered(&format!("{method} {path}"));
    // Routes beyond the limit are not kept: their paths may be without number. A thread that ends
    // has no table any more.
    if route != Route::OTHER {
        KNOWN
            .try_with(|known| keep(&mut known.borrow_mut(), method, path, route))
            .ok();
    }
    route
}

fn keep(
    known: &mut Vec<(&'static str, HashMap<String, Route>)>,
    method: &'static str,
    path: &str,
    route: Route,
) {
    let place = known.iter().position(|(known, _)| *known == method);
    let place = place.unwrap_or_else(|| {
        known.push((method, HashMap::new()));
        known.len() - 1
    });
    known[place].1.insert(path.to_owned(), route);
}

/// The route with this name, which gets the first free place if it is new.
fn numbered(name: &str) -> Route {
    let name_here =
        |known: &OnceLock<&'static str>| *known.get_or_init(|| String::from(name).leak()) == name;
    let place = NAMES.iter().position(name_here);
    place.map_or(Route::OTHER, Route::at)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use http::Method;
    use std::collections::HashSet;

    #[test]
    fn a_route_is_a_method_and_a_path_and_their_number_is_limited() {
        let users = Route::of(&Method::GET, "/users/{id}");
        assert_eq!(users.name(), "GET /users/{id}");
        assert_eq!(Route::of(&Method::GET, "/users/{id}"), users);
        assert_ne!(Route::of(&Method::POST, "/users/{id}"), users);
        let invented = |number| Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
        let routes: HashSet<Route> = (0..2 * ROUTES)
            .map(|number| Route::of(&invented(number), "/users/{id}"))
            .collect();
        assert_eq!(routes.len(), 1, "all methods that are not known");
        let long = "/".repeat(LONGEST_PATH + 1);
        assert_eq!(Route::of(&Method::GET, &long), Route::OTHER);
        for number in 0..2 * ROUTES {
            Route::of(&Method::GET, &format!("/{number}"));
        }
        let late = Route::of(&Method::GET, "/late");
        assert_eq!((late, late.name()), (Route::OTHER, OTHER));
        let elsewhere = std::thread::spawn(|| Route::of(&Method::GET, "/users/{id}"));
        assert_eq!(elsewhere.join().unwrap(), users, "threads agree");
    }
}

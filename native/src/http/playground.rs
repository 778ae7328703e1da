//! The way from this port to the page that looks inside the network, which has a port of its own.

use std::net::IpAddr;

use http::Uri;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;

/// The page's address for who came by this request; None if there is no page, or it is not reached from there.
///
/// A page that others reach is found under the name by which they came: it may listen on all addresses.
pub fn address_for(page: &str, head: &Parts) -> Option<String> {
    let page: Uri = page.parse().ok()?;
    let said = head.headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let came_by = head.uri.authority().cloned().or(said)?;
    match (is_loopback(page.host()?), is_loopback(came_by.host())) {
        (true, true) => Some(page.to_string()),
        (true, false) => None,
        (false, _) => Some(format!("{}://{}:{}/", page.scheme_str()?, came_by.host(), page.port_u16()?)),
    }
}

fn is_loopback(name: &str) -> bool {
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_page_is_where_the_visitor_can_reach_it() {
        const HERE: &str = "http://127.0.0.1:8003/";
        const PUBLIC: &str = "https://0.0.0.0:8003/";
        for (page, host, expected) in [
            (HERE, "127.0.0.1:8001", Some(HERE)),
            (HERE, "localhost:8001", Some(HERE)),
            (HERE, "[::1]:8001", Some(HERE)),
            (HERE, "gpu-box:8001", None),
            (PUBLIC, "gpu-box:8001", Some("https://gpu-box:8003/")),
            (PUBLIC, "[fe80::1]", Some("https://[fe80::1]:8003/")),
            (PUBLIC, "a b", None),
            ("", "localhost", None),
        ] {
            let (head, ()) = Request::builder().uri("/").header(HOST, host).body(()).unwrap().into_parts();
            assert_eq!(address_for(page, &head).as_deref(), expected, "{page} {host}");
        }
    }
}

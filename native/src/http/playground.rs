//! The way from this port to the page that looks inside the network, which has a port of its own.

use std::net::IpAddr;

use http::Uri;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;

/// The page's address for who came by this request; None if there is no page, or it is not reached from there.
///
/// A page on all addresses takes visitors by an address or as localhost: other names may be another site's.
pub fn address_for(page: &str, is_here: bool, head: &Parts) -> Option<String> {
    let page: Uri = page.parse().ok()?;
    let said = head.headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let came_by = head.uri.authority().cloned().or(said)?;
    let is_everywhere = address_in(page.host()?).is_some_and(|address| address.is_unspecified());
    if is_here {
        return is_loopback(came_by.host()).then(|| page.to_string());
    }
    if !is_everywhere {
        return Some(page.to_string());
    }
    let is_taken = is_loopback(came_by.host()) || address_in(came_by.host()).is_some();
    is_taken.then(|| Some(format!("{}://{}:{}/", page.scheme_str()?, came_by.host(), page.port_u16()?)))?
}

fn address_in(name: &str) -> Option<IpAddr> {
    name.trim_matches(['[', ']']).parse().ok()
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || address_in(name).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_page_is_where_the_visitor_can_reach_it() {
        const HERE: &str = "http://127.0.0.1:8003/";
        const EVERYWHERE: &str = "https://0.0.0.0:8003/";
        const THERE: &str = "https://gpu-box:8003/";
        for (page, is_here, host, expected) in [
            (HERE, true, "127.0.0.1:8001", Some(HERE)),
            (HERE, true, "localhost:8001", Some(HERE)),
            (HERE, true, "[::1]:8001", Some(HERE)),
            (HERE, true, "gpu-box:8001", None),
            ("http://myhost:8003/", true, "gpu-box:8001", None), // a name of 127.0.1.1, say
            (THERE, false, "localhost:8001", Some(THERE)),
            (THERE, false, "gpu-box:8001", Some(THERE)),
            (EVERYWHERE, false, "10.0.0.5:8001", Some("https://10.0.0.5:8003/")),
            (EVERYWHERE, false, "[fe80::1]", Some("https://[fe80::1]:8003/")),
            (EVERYWHERE, false, "localhost", Some("https://localhost:8003/")),
            (EVERYWHERE, false, "gpu-box:8001", None), // which the page takes for DNS rebinding
            (EVERYWHERE, false, "a b", None),
            ("", false, "localhost", None),
        ] {
            let (head, ()) = Request::builder().uri("/").header(HOST, host).body(()).unwrap().into_parts();
            assert_eq!(address_for(page, is_here, &head).as_deref(), expected, "{page} {host}");
        }
    }
}

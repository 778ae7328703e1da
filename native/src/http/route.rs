//! From paths to what is there.

use http::Method;

use crate::classify::quoted;
use crate::status::{Code, Status};

/// Names and versions as the path has them; an empty version leaves it to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    Live,
    Ready,
    Server,
    ModelReady { name: &'a str, version: &'a str },
    Model { name: &'a str, version: &'a str },
    Config { name: &'a str, version: &'a str },
    Statistics { name: &'a str, version: &'a str },
    Index,
    Infer { name: &'a str, version: &'a str },
    Classify,
    OpenApi,
    Playground,
}

impl<'a> Route<'a> {
    pub fn from_path(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let parts: Vec<&str> = path.strip_suffix('/').unwrap_or(path).splitn(8, '/').collect();
        match parts[..] {
            ["v1", "classify"] => Some(Self::Classify),
            [""] => Some(Self::Playground),
            ["openapi.json"] => Some(Self::OpenApi),
            ["v2"] => Some(Self::Server),
            ["v2", "health", "live"] => Some(Self::Live),
            ["v2", "health", "ready"] => Some(Self::Ready),
            ["v2", "repository", "index"] => Some(Self::Index),
            ["v2", "models", "stats"] => Some(Self::Statistics { name: "", version: "" }),
            ["v2", "models", name, "versions", version, ref rest @ ..] => Self::of_model(name, version, rest),
            ["v2", "models", name, ref rest @ ..] => Self::of_model(name, "", rest),
            _ => None,
        }
    }

    fn of_model(name: &'a str, version: &'a str, rest: &[&str]) -> Option<Self> {
        match rest {
            [] => Some(Self::Model { name, version }),
            ["ready"] => Some(Self::ModelReady { name, version }),
            ["config"] => Some(Self::Config { name, version }),
            ["stats"] => Some(Self::Statistics { name, version }),
            ["infer"] => Some(Self::Infer { name, version }),
            _ => None,
        }
    }

    /// A probe has no token, and neither has a browser on its way to the page.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Live | Self::Ready | Self::ModelReady { .. } | Self::Playground)
    }

    pub fn check_method(self, method: &Method) -> Result<(), Status> {
        let is_post = matches!(self, Self::Index | Self::Infer { .. } | Self::Classify);
        let is_right = if is_post { method == Method::POST } else { matches!(*method, Method::GET | Method::HEAD) };
        if is_right {
            return Ok(());
        }
        let cure = if is_post { "send POST" } else { "send GET" };
        Err(Status::new(Code::Unimplemented, "BAD_METHOD", format!("{method} is not served here"), cure))
    }
}

pub fn unknown(path: &str) -> Status {
    if path.split('/').nth(1).is_some_and(|first| first.contains('.')) {
        let what = "methods of services are served over gRPC and gRPC-Web";
        return Status::invalid("BAD_CONTENT_TYPE", what, "send application/grpc, or see /openapi.json");
    }
    Status::not_found("UNKNOWN_PATH", format!("there is nothing at {}", quoted(path)), "see /openapi.json")
}

#[cfg(test)]
mod tests {
    use super::Route;

    #[test]
    fn paths_name_models_versions_and_what_is_asked_of_them() {
        let (name, version) = ("lenet5", "");
        for (path, expected) in [
            ("/v2", Some(Route::Server)),
            ("/v2/", Some(Route::Server)),
            ("/v2/models/lenet5", Some(Route::Model { name, version })),
            ("/v2/models/lenet5/infer", Some(Route::Infer { name, version })),
            ("/v2/models/lenet5/versions/3/infer", Some(Route::Infer { name, version: "3" })),
            ("/v2/models/stats", Some(Route::Statistics { name: "", version })),
            ("/v2/models/lenet5/versions", None),
            ("/v2/models/lenet5/versions/3/infer/more", None),
            ("/", Some(Route::Playground)),
            ("//v2", None),
            ("", None),
            ("*", None),
        ] {
            assert_eq!(Route::from_path(path), expected, "{path}");
        }
    }
}

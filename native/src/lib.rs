//! Atelier's front end: atelier.v1.Classifier over gRPC, entering Python once per batch.
//!
//! From the outside in: io -> connection -> routes -> call -> classify -> versions -> engine -> batching, model;
//! their life, from warming up to the drain, is life.rs.
#![deny(unsafe_code)] // but for one line of python.rs, which tests/test_imports.py holds us to

mod aside;
mod authority;
mod batching;
mod body;
mod budget;
mod call;
mod classify;
mod connection;
mod crowd;
mod engine;
mod frame_watch;
mod framing;
#[cfg(test)]
#[path = "../tests/fuzzing/mod.rs"]
mod fuzzing;
mod guarded_io;
mod health;
mod http;
mod io;
mod job;
mod life;
mod linger;
mod load_client;
mod log;
mod messages;
mod metrics;
mod metrics_page;
mod model;
mod open_inference;
mod peers;
mod pictures;
mod probe;
mod python;
mod records;
mod reflection;
mod response;
mod routes;
mod scrapes;
mod server;
mod serving;
mod settings;
mod shared;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
mod status;
mod tls;
mod tokens;
mod turns;
mod versions;
mod waiting;

mod proto {
    #![allow(clippy::all, dead_code)]
    pub mod atelier {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/atelier.v1.rs"));
        }
    }
    pub mod inference {
        include!(concat!(env!("OUT_DIR"), "/inference.rs"));
    }
    pub mod grpc {
        pub mod health {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
            }
        }
        pub mod reflection {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/grpc.reflection.v1.rs"));
            }
        }
    }
}

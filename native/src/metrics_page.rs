//! The metrics as text for Prometheus, with the names, labels and buckets of serving/metrics.py.
#![forbid(unsafe_code)]

use std::fmt::{Arguments, Write};
use std::sync::atomic::Ordering::Relaxed;

use crate::metrics::Histogram;
use crate::server::Server;

const METHODS: [&str; 3] = ["Classify", "GetModel", "other"];
const CODES: [(usize, &str); 12] = [
    (0, "OK"),
    (1, "CANCELLED"),
    (2, "UNKNOWN"),
    (3, "INVALID_ARGUMENT"),
    (4, "DEADLINE_EXCEEDED"),
    (5, "NOT_FOUND"),
    (7, "PERMISSION_DENIED"),
    (8, "RESOURCE_EXHAUSTED"),
    (12, "UNIMPLEMENTED"),
    (13, "INTERNAL"),
    (14, "UNAVAILABLE"),
    (16, "UNAUTHENTICATED"),
];

pub fn text(server: &Server) -> String {
    let (metrics, settings, is_serving) = (server.metrics(), &server.settings, server.is_serving());
    let mut page = Page(String::with_capacity(16 << 10));
    page.head("atelier_info", "gauge", "Version of the server, model, backend and device.");
    let labels: Vec<String> =
        settings.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    if is_serving {
        page.line(format_args!("atelier_info{{{}}} 1.0", labels.join(",")));
    }
    page.single("atelier_workers", "gauge", "Server processes that are ready.", u64::from(is_serving));
    let about = "Server processes that were replaced because they died, hung or could not go on.";
    page.single("atelier_worker_restarts_total", "counter", about, settings.num_restarts);
    page.head("atelier_requests_total", "counter", "Calls that ended, by gRPC status.");
    for (name, calls) in METHODS.iter().zip(&metrics.calls) {
        for (code, code_name) in CODES {
            let count = calls[code].load(Relaxed);
            page.line(format_args!("atelier_requests_total{{code=\"{code_name}\",method=\"{name}\"}} {count}.0"));
        }
    }
    page.single("atelier_images_total", "counter", "Images answered.", metrics.images.load(Relaxed));
    page.head("atelier_batches_total", "counter", "Runs of the model.");
    for (outcome, count) in [("ok", &metrics.batches), ("failed", &metrics.failed_batches)] {
        page.line(format_args!("atelier_batches_total{{outcome=\"{outcome}\"}} {}.0", count.load(Relaxed)));
    }
    let about = "Images that wait for a batch.";
    page.single("atelier_queue_images", "gauge", about, server.engine.num_waiting() as u64);
    page.histogram("atelier_batch_size_images", "Images of a batch.", &metrics.batch_size, 1.0);
    for (name, about, histogram) in [
        ("queue", "What a request waited for its batch.", &metrics.queue),
        ("inference", "What a batch took on the device.", &metrics.inference),
        ("request", "What an answered Classify call took, from its whole message to its answer.", &metrics.request),
    ] {
        page.histogram(&format!("atelier_{name}_duration_seconds"), about, histogram, 1e6);
    }
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, line: Arguments<'_>) {
        let _ = writeln!(self.0, "{line}");
    }

    fn head(&mut self, name: &str, kind: &str, about: &str) {
        self.line(format_args!("# HELP {name} {about}\n# TYPE {name} {kind}"));
    }

    fn single(&mut self, name: &str, kind: &str, about: &str, value: u64) {
        self.head(name, kind, about);
        self.line(format_args!("{name} {value}.0"));
    }

    /// `scale`: what is counted, per unit of the name.
    fn histogram(&mut self, name: &str, about: &str, histogram: &Histogram, scale: f64) {
        self.head(name, "histogram", about);
        let mut total = 0;
        for (bucket, count) in histogram.counts.iter().enumerate() {
            total += count.load(Relaxed);
            let bound = histogram.bounds.get(bucket).map(|&bound| bound as f64 / scale);
            let bound = bound.map_or("+Inf".into(), |bound| format!("{bound:?}"));
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {total}.0"));
        }
        let sum = histogram.sum.load(Relaxed) as f64 / scale;
        self.line(format_args!("{name}_count {total}.0\n{name}_sum {sum:?}"));
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

//! The metrics as text for Prometheus, with the names, labels and buckets of serving/metrics.py and triton_metrics.py.

use std::fmt::{Arguments, Write};
use std::sync::atomic::Ordering::Relaxed;

use crate::metrics::Histogram;
use crate::server::Server;
use crate::shared::locked;

const METHODS: [&str; 4] = ["Classify", "GetModel", "ModelInfer", "other"];
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    OpenMetrics,
}

impl Format {
    /// What the header Accept asks for; Prometheus asks for OpenMetrics first.
    pub fn accepted(accept: &str) -> Self {
        let mut kinds = accept.split(',').filter_map(|kind| kind.split(';').next());
        let is_open = kinds.any(|kind| kind.trim() == "application/openmetrics-text");
        if is_open { Self::OpenMetrics } else { Self::Text }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

pub fn text(server: &Server, format: Format) -> String {
    let mut page = Page { text: String::with_capacity(16 << 10), format };
    our_metrics(server, &mut page);
    tritons_metrics(server, &mut page);
    if format == Format::OpenMetrics {
        page.line(format_args!("# EOF"));
    }
    page.text
}

fn our_metrics(server: &Server, page: &mut Page) {
    let (metrics, settings, is_serving) = (server.metrics(), &server.settings, server.life.is_serving());
    let model = &server.life.versions.current().model;
    page.head("atelier_info", "info", "Version of the server, model, backend and device.");
    let labels: Vec<String> =
        model.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    if is_serving {
        page.line(format_args!("atelier_info{{{}}} 1.0", labels.join(",")));
    }
    page.single("atelier_workers", "gauge", "Server processes that are ready.", u64::from(is_serving));
    let about = "Server processes that were replaced because they died, hung or could not go on.";
    page.single("atelier_worker_restarts_total", "counter", about, settings.num_restarts);
    let about = "Newer versions of the model that took the place of the one before.";
    page.single("atelier_version_swaps_total", "counter", about, metrics.version_swaps.load(Relaxed));
    let about = "Newer versions of the model that were not served, by the word of the reason.";
    page.head("atelier_versions_refused_total", "counter", about);
    for (word, count) in &*locked(&metrics.versions_refused) {
        page.line(format_args!("atelier_versions_refused_total{{reason=\"{}\"}} {count}.0", escaped(word)));
    }
    page.head("atelier_requests_total", "counter", "Calls that ended, by gRPC status.");
    for (name, calls) in METHODS.iter().zip(&metrics.calls) {
        for (code, code_name) in CODES {
            let count = calls[code].load(Relaxed);
            page.line(format_args!("atelier_requests_total{{code=\"{code_name}\",method=\"{name}\"}} {count}.0"));
        }
    }
    page.single("atelier_images_total", "counter", "Images answered.", metrics.images.load(Relaxed));
    let about = "Answers whose client had gone when they were ready.";
    page.single("atelier_undelivered_total", "counter", about, metrics.undelivered.load(Relaxed));
    page.head("atelier_batches_total", "counter", "Runs of the model.");
    for (outcome, count) in [("ok", &metrics.batches), ("failed", &metrics.failed_batches)] {
        page.line(format_args!("atelier_batches_total{{outcome=\"{outcome}\"}} {}.0", count.load(Relaxed)));
    }
    if let Some(expires_s) = server.certificate_expires_s() {
        let about = "When the TLS certificate that is served ends.";
        page.single("atelier_tls_certificate_expiry_timestamp_seconds", "gauge", about, expires_s);
    }
    let about = "Images that wait for a batch.";
    page.single("atelier_queue_images", "gauge", about, server.num_waiting() as u64);
    page.histogram("atelier_batch_size_images", "Images of a batch.", &metrics.batch_size, 1.0);
    for (name, about, histogram) in [
        ("queue", "What a request waited for its batch.", &metrics.queue),
        ("inference", "What a batch took on the device.", &metrics.inference),
        (
            "request",
            "What an answered Classify or ModelInfer took, from its whole message to its answer.",
            &metrics.request,
        ),
    ] {
        page.histogram(&format!("atelier_{name}_duration_seconds"), about, histogram, 1e6);
    }
}

/// What Triton counts under these names, as far as it follows from what is counted anyway.
fn tritons_metrics(server: &Server, page: &mut Page) {
    let metrics = server.metrics();
    let served = server.life.versions.current();
    let (model, version) = (escaped(&served.model.name), escaped(&served.model.version));
    let name = "nv_inference_request_failure";
    page.head(name, "unknown", "Inference requests that failed, by Triton's reason.");
    for reason in ["REJECTED", "CANCELED", "BACKEND", "OTHER"] {
        let failures = metrics.num_inferences().enumerate().skip(1).filter(|(code, _)| reason_of(*code) == reason);
        let count: u64 = failures.map(|(_, count)| count).sum();
        page.line(format_args!("{name}{{model=\"{model}\",reason=\"{reason}\",version=\"{version}\"}} {count}.0"));
    }
    for (name, about, value) in [
        ("request_success", "Inference requests that were answered.", metrics.num_answered()),
        ("count", "Images answered.", metrics.images.load(Relaxed)),
        ("exec_count", "Runs of the model.", metrics.batches.load(Relaxed)),
        ("request_duration_us", "What answered requests took, added up.", metrics.request.sum.load(Relaxed)),
        ("queue_duration_us", "What requests waited for their batch, added up.", metrics.queue.sum.load(Relaxed)),
        (
            "compute_infer_duration_us",
            "What their batches took, added up over requests.",
            metrics.compute_us.load(Relaxed),
        ),
        ("pending_request_count", "Requests that wait for a batch.", server.num_waiting_requests() as u64),
    ] {
        let kind = if name == "pending_request_count" { "gauge" } else { "unknown" };
        page.head(&format!("nv_inference_{name}"), kind, about);
        page.line(format_args!("nv_inference_{name}{{model=\"{model}\",version=\"{version}\"}} {value}.0"));
    }
}

/// What Triton calls the failure that ends in this status.
fn reason_of(code: usize) -> &'static str {
    match code {
        1 => "CANCELED",
        4 | 8 | 14 => "REJECTED",
        13 => "BACKEND",
        _ => "OTHER",
    }
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn line(&mut self, line: Arguments<'_>) {
        let _ = writeln!(self.text, "{line}");
    }

    /// `kind` and family are OpenMetrics'; the older text has its samples' names and fewer kinds.
    fn head(&mut self, name: &str, kind: &str, about: &str) {
        let (name, kind) = match (self.format, kind) {
            (Format::OpenMetrics, "counter") => (name.trim_end_matches("_total"), kind),
            (Format::OpenMetrics, "info") => (name.trim_end_matches("_info"), kind),
            (Format::Text, "info") => (name, "gauge"),
            (Format::Text, "unknown") => (name, "untyped"),
            _ => (name, kind),
        };
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

#[cfg(test)]
mod tests {
    use super::Format;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for others in ["", "*/*", "text/plain;version=0.0.4", "text/html, application/xml"] {
            assert_eq!(Format::accepted(others), Format::Text);
        }
    }
}

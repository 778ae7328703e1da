"""The server's settings: one frozen dataclass, checked when made, and the command line that fills it."""

from dataclasses import dataclass, field
from pathlib import Path

from atelier.errors import ConfigurationError
from atelier.settings import parse_settings
from serving.backends.select import KINDS
from serving.limits import Limits
from serving.listening import is_unix, path_from
from serving.logs import FORMATS

DEFAULT_METRICS_PORT = 8002  # Triton's
DEFAULT_PLAYGROUND_PORT = 8003
FRONT_ENDS = ("auto", "native", "grpcio")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Holds the settings. Raises ConfigurationError, naming value, limit and cure, if one of them cannot be."""

    repository: Path = Path("artifacts/models")
    """The model repository that `python -m export` writes: <repository>/lenet5/<version>/."""

    model_version: int | None = None
    """Version to serve; None takes the newest."""

    require_signature: Path | None = None
    """Serve only what was exported with --signing-key: a file with the Ed25519 public key, or several, in PEM. It
    needs the extra `signing`.
    """

    watch_repository: float | None = field(default=None, metadata={"alone": 5.0})
    """Look for newer versions every so many seconds (5 if none are given), and serve one as soon as it is loaded and
    proven. Without it, SIGHUP has the server look once.
    """

    host: str = "127.0.0.1"
    """Address to listen on, IPv6 with or without brackets; or unix:<path>, a Unix socket whose mode follows the umask;
    or several of these, separated by commas. Where others can reach it, it needs TLS and tokens, or --insecure.
    """

    port: int = 50051
    """Port to listen on; 0 lets the system choose one, which is printed."""

    metrics_port: int | None = None
    """Port of the page for Prometheus, /metrics, on the same hosts (127.0.0.1 beside a Unix socket); 0 turns metrics
    off. None takes 8002, or if --port is 0 one that the system chooses, which is printed.
    """

    playground_port: int | None = None
    """Port of the page that looks inside the served network, which costs nothing until it is opened; 0 turns it off.
    None takes 8003, or if --port is 0 one that the system chooses, which is printed.
    """

    playground_host: str = "127.0.0.1"
    """Address of that page, whatever --host is. One that others can reach needs TLS and tokens, which are then its
    passwords, or --insecure.
    """

    front_end: str = "auto"
    """native, grpcio or auto: what speaks to clients. auto takes native, in Rust, if it is installed, and says so."""

    tls_certificate: Path | None = None
    """The server's certificate chain, in PEM, for TLS; read again when it changes, as are the three files below."""

    tls_key: Path | None = None
    """The private key of --tls-certificate, in PEM."""

    tls_client_authority: Path | None = None
    """Clients must show a certificate of this authority (PEM): mutual TLS."""

    tokens: Path | None = None
    """Calls need a bearer token: a file with the SHA-256 digest of one, in hexadecimal, at the start of each line."""

    insecure: bool = False
    """Listen where others can reach it even without TLS and tokens, as behind a proxy that has both."""

    backend: str = "auto"
    """auto, onnxruntime, torch, tensorrt or litert. auto takes the fastest there is and says which and why."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>. What is asked for runs, or start-up fails."""

    num_threads: int = 1
    """Threads that one inference may use on the CPU."""

    max_batch_size: int | None = None
    """Most images in one run of the model, at most what parity was proven for; None takes that, up to 64 on a CPU and
    256 on a GPU.
    """

    max_queue_size: int = 4096
    """Most images that may wait; one more is RESOURCE_EXHAUSTED. A request may have as many, up to 1,024."""

    max_message_bytes: int = 16 << 20
    """Largest request on the wire; it bounds the pictures that can be sent."""

    log_format: str = "text"
    """text, for people, or json: one object a line, for collectors."""

    log_requests: bool = False
    """Log a line for each call that ends: method, status, times, batch size and trace."""

    traces: bool = False
    """Send an OpenTelemetry span for each call, in the trace that its traceparent names;
    OTEL_EXPORTER_OTLP_ENDPOINT says where to, OTEL_TRACES_SAMPLER which. It needs the extra `traces`.
    """

    ready_file: Path | None = None
    """Written once it serves, for programs: JSON with targets, metrics, pid, front_end, backend, device and model."""

    hang_timeout_s: float = 30.0
    """A batch that takes longer than this counts as a hung device: its process ends, and another takes over."""

    drain_timeout_s: float = 30.0
    """After SIGTERM, how long accepted requests may take."""

    limits: Limits = field(default_factory=Limits)
    """Fences, which have no flags."""

    def __post_init__(self) -> None:
        self._check("backend", self.backend in KINDS, f"one of {', '.join(KINDS)}")
        self._check("port", 0 <= self.port <= 65535, "0 to 65535")
        self._check("metrics_port", self.metrics_port is None or 0 <= self.metrics_port <= 65535, "0 to 65535")
        port = self.playground_port
        self._check("playground_port", port is None or 0 <= port <= 65535, "0 to 65535")
        self._check("playground_host", bool(self.playground_host.strip()), "an address, such as 127.0.0.1")
        self._check("playground_host", not is_unix(self.playground_host), "an address that a browser opens")
        self._check("front_end", self.front_end in FRONT_ENDS, f"one of {', '.join(FRONT_ENDS)}")
        self._check("host", bool(self.hosts), "an address, or several with commas between")
        self._check("log_format", self.log_format in FORMATS, f"one of {', '.join(FORMATS)}")
        self._check("tls_key", (self.tls_key is None) == (self.tls_certificate is None), "given with --tls-certificate")
        has_authority = self.tls_client_authority is not None
        self._check("tls_client_authority", self.has_tls or not has_authority, "given with --tls-certificate")
        has_folder = self.ready_file is None or self.ready_file.parent.is_dir()
        self._check("ready_file", has_folder, "in a folder that exists")
        for host in filter(is_unix, self.hosts):
            path_from(host)
        has_port = not all(map(is_unix, self.hosts))
        if has_port and self.has_metrics and self.port and self.metrics_port_to_open == self.port:
            what = f"--port and the metrics' port are both {self.port}"
            raise ConfigurationError("BAD_SETTING", what, "set another --metrics-port, or 0 for none")
        for name in ("num_threads", "max_batch_size", "max_queue_size"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        interval_s = self.watch_repository
        self._check("watch_repository", interval_s is None or 0 < interval_s < 1e6, "more than 0 seconds")
        if interval_s is not None and self.model_version is not None:
            what = f"--watch-repository looks for newer versions, and --model-version asks for {self.model_version}"
            raise ConfigurationError("BAD_SETTING", what, "leave one of them out")
        for name in ("hang_timeout_s", "drain_timeout_s"):
            self._check(name, 0 < getattr(self, name) < 1e6, "more than 0 seconds")
        enough = self.max_images_per_request * 784 + 1024
        self._check("max_message_bytes", enough <= self.max_message_bytes < 2**31, f"{enough} to 2147483647")

    @property
    def hosts(self) -> list[str]:
        """The addresses to listen on, each as `--host` takes one."""
        return [host.strip() for host in self.host.split(",") if host.strip()]

    @property
    def metrics_hosts(self) -> list[str]:
        """The addresses that the metrics page listens on."""
        return [host for host in self.hosts if not is_unix(host)] or ["127.0.0.1"]

    @property
    def has_records(self) -> bool:
        """True if each call is to be told of."""
        return self.log_requests or self.traces

    @property
    def has_tls(self) -> bool:
        """True if it speaks TLS."""
        return self.tls_certificate is not None and self.tls_key is not None

    @property
    def has_metrics(self) -> bool:
        """True if anything is counted for the metrics page."""
        return self.metrics_port != 0

    @property
    def metrics_port_to_open(self) -> int:
        """For a server that has metrics; 0 lets the system choose."""
        return self.metrics_port or (DEFAULT_METRICS_PORT if self.port else 0)

    @property
    def playground_port_to_open(self) -> int:
        """For a server that has the page; 0 lets the system choose."""
        return self.playground_port or (DEFAULT_PLAYGROUND_PORT if self.port else 0)

    @property
    def max_images_per_request(self) -> int:
        """Most images in one request: the limit, or as many as may wait."""
        return min(self.limits.max_images_per_request, self.max_queue_size)

    @property
    def max_encoded_bytes(self) -> int:
        """Most bytes of encoded pictures that may wait: the limit, or one message if that may be larger."""
        return max(self.limits.max_encoded_bytes, self.max_message_bytes)

    def _check(self, name: str, is_met: bool, limit: str) -> None:
        if not is_met:
            flag = "--" + name.replace("_", "-")
            raise ConfigurationError("BAD_SETTING", f"{flag} is {getattr(self, name)!r}", f"it must be {limit}")


def parse_arguments(arguments: list[str]) -> ServerConfig:
    """Reads the settings from a command line; a flag for every field, with its meaning as the help."""
    return parse_settings(
        ServerConfig,
        arguments,
        prog="python -m serving",
        description="Serve an exported LeNet-5 over gRPC: atelier.v1.Classifier, health and reflection on one port.",
        epilog="SIGTERM or Ctrl-C drains: accepted requests are answered, new ones are told to retry elsewhere. "
        "SIGHUP looks for a newer version.",
    )

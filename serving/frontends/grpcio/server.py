"""Serves with grpcio, on one event loop: listens, warms up, serves, drains.

grpcio's default stop answers calls that it has accepted but not started with CANCELLED. So a drain goes on accepting
for a moment, answering UNAVAILABLE, and only then stops.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2

from atelier.errors import DeviceError, ProgramError, ResourceUnavailableError
from atelier.wire import OPEN_INFERENCE, SERVICE
from serving.access import Tls, tls_of
from serving.config import ServerConfig
from serving.container_memory import Pressure
from serving.errors import NotServingError
from serving.frontends.grpcio import health as probes
from serving.frontends.grpcio import open_inference
from serving.frontends.grpcio.calls import Method, RpcHandler
from serving.frontends.grpcio.classifier import ClassifierService
from serving.frontends.grpcio.open_inference import OpenInferenceService
from serving.frontends.grpcio.versions import Versions
from serving.metrics import NO_METRICS, Metrics
from serving.models import ServedModel
from serving.playground.entrance import NO_ENTRANCE, Entrance
from serving.process import labels_of
from serving.request_log import RequestLog

logger = logging.getLogger(__name__)


class Server:
    """Serves a model on some addresses: `start`, then `run_until_stopped`."""

    def __init__(
        self,
        config: ServerConfig,
        model: ServedModel,
        addresses: Sequence[str],
        *,
        metrics: Metrics = NO_METRICS,
        log: RequestLog | None = None,
        on_failure: Callable[[ProgramError], None] = lambda _failure: None,
        entrance: Entrance = NO_ENTRANCE,
    ) -> None:
        """`addresses` are gRPC's targets, whose ports another process may keep; `entrance` is the page's.

        `on_failure` is told, with the reason, when the server begins to drain because it cannot go on.
        """
        self.port = 0  # that of the last address
        self._config = config
        self._addresses = addresses
        self._entrance = entrance
        self._metrics = metrics
        self._log = log
        self._on_failure = on_failure
        self._tls = tls = tls_of(config)
        if tls is not None:
            metrics.show_certificate(lambda: tls.ends_s)
        self._health = health.aio.HealthServicer()
        self._is_stopping = asyncio.Event()
        self._failure: ProgramError | None = None
        self._loop = asyncio.get_running_loop()
        self._versions = Versions(model, config, metrics=metrics, on_failure=self._give_up)
        self._service = ClassifierService(self._versions, config, metrics)
        self._open_inference = OpenInferenceService(self._versions, self._service, metrics, self._refusal)

    async def start(self) -> None:
        """Listens, warms up; then health says SERVING. Raises ResourceUnavailableError if it cannot listen."""
        await self._listen()
        await self._versions.current.engine.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    @property
    def num_requests(self) -> int:
        """Requests answered so far."""
        return self._service.num_requests

    @property
    def num_images(self) -> int:
        """Images answered so far."""
        return self._versions.num_images

    @property
    def num_waiting(self) -> int:
        """Images that wait for a batch."""
        return sum(engine.num_waiting for engine in self._versions.engines)

    @property
    def model(self) -> ServedModel:
        """The model that is served."""
        return self._versions.current.engine.model

    def swap(self, model: ServedModel) -> None:
        """Warms it up, serves it from now on, and keeps the present one; for the loader's thread."""
        asyncio.run_coroutine_threadsafe(self._versions.swap(model), self._loop).result()
        self._metrics.count_swap(labels_of(model))

    def keep(self, model: ServedModel) -> None:
        """Warms it up, and serves it to calls that ask for it; for the loader's thread."""
        asyncio.run_coroutine_threadsafe(self._versions.keep(model), self._loop).result()

    def look_after_certificate(self) -> None:
        """Has its files read again if they have changed, and warns before it ends."""
        if self._tls is not None:
            self._tls.look()

    def set_pressure(self, pressure: Pressure) -> None:
        """Refuses what there is no memory for."""
        self._handler.pressure = pressure

    def count_refused(self, word: str) -> None:
        """Counts a version that was refused."""
        self._metrics.count_refused_version(word)

    @property
    def num_waiting_requests(self) -> int:
        """Requests that wait for a batch."""
        return sum(engine.num_waiting_requests for engine in self._versions.engines)

    def stop(self, failure: ProgramError | None = None) -> None:
        """Begins the drain; `run_until_stopped` ends with the failure that is the reason for it."""
        if failure is not None and not self._is_stopping.is_set():
            self._failure = failure
            self._on_failure(failure)
        self._is_stopping.set()

    async def run_until_stopped(self) -> None:
        """Serves until `stop`, then drains: every accepted request is answered. Raises ProgramError if it cannot."""
        await self._is_stopping.wait()
        config = self._config
        await self._health.enter_graceful_shutdown()  # NOT_SERVING
        refusal = NotServingError("DRAINING", "the server is shutting down", "retry: another may serve")
        self._handler.refusal = refusal
        if not self._watch.done():  # while there still is a port on which to refuse
            await asyncio.sleep(config.limits.lame_duck_s)
        # From now on clients are told to go elsewhere (GOAWAY), while what was accepted is answered.
        leaving = asyncio.ensure_future(self._grpc_server.stop(grace=config.drain_timeout_s + 1.0))
        try:
            async with asyncio.timeout(config.drain_timeout_s):
                await self._service.pictures.finish()
                await self._versions.drain(refusal)
        except TimeoutError:
            reason = NotServingError("DRAIN_TIMEOUT", "the server shut down first", "retry elsewhere")
            num_requests = self._versions.abandon(reason) + self._service.pictures.num_requests
            what = f"{num_requests} requests were unanswered after {config.drain_timeout_s:g} s"
            self._failure = ProgramError("DRAIN_TIMEOUT", what, "raise --drain-timeout-s")
        await asyncio.wait([leaving], timeout=1.0)  # for the last answers to be sent; idle streams would stay
        await asyncio.wait([asyncio.ensure_future(self._grpc_server.stop(grace=None))], timeout=3.0)  # it may never end
        await self._versions.close()
        self._service.pictures.close()
        if self._failure is not None:
            raise self._failure

    def _refusal(self) -> NotServingError | None:
        """Returns why calls are refused now, if they are."""
        return self._handler.refusal or self._versions.current.engine.refusal

    def _give_up(self, failure: DeviceError) -> None:
        """Stops, as the batcher has abandoned what was accepted: in a drain too, that must not look like success."""
        self.stop(failure)
        self._failure = self._failure or failure

    async def _listen(self) -> None:
        config = self._config
        most = config.limits.max_concurrent_requests
        self._grpc_server = grpc.aio.server(options=_channel_arguments(config), maximum_concurrent_rpcs=most)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        methods: dict[str, Method] = {
            f"/{SERVICE}/Classify": self._service.classify,
            f"/{SERVICE}/GetModel": self._service.get_model,
            f"/{OPEN_INFERENCE}/ModelInfer": self._open_inference.model_infer,
        }
        conversations = probes.conversations(self._health) | self._open_inference.conversations()
        without_token = probes.PROBES | open_inference.PROBES
        of_page = self._entrance.token_sha256
        self._handler = RpcHandler(methods, conversations, config, self._metrics, without_token, self._log, of_page)
        self._grpc_server.add_generic_rpc_handlers((self._handler,))
        if self._entrance.address:
            self._grpc_server.add_insecure_port(self._entrance.address)
        credentials = _credentials_of(self._tls) if self._tls else None
        for address in self._addresses:
            try:
                self.port = (
                    self._grpc_server.add_secure_port(address, credentials)
                    if credentials
                    else self._grpc_server.add_insecure_port(address)
                )
            except RuntimeError:  # the supervisor, which has tried, says better why
                what = f"gRPC refuses to listen on {address}"
                raise ResourceUnavailableError("CANNOT_LISTEN", what, "choose another --host or --port") from None
        await self._grpc_server.start()
        self._watch = asyncio.create_task(self._watch_accept_loop())

    async def _watch_accept_loop(self) -> None:
        """Stops a server whose accept loop died of a method name that is not UTF-8: it would live on without a port."""
        try:
            while await self._grpc_server.wait_for_termination(timeout=0.2):  # it raises once the loop has died
                pass
        except Exception:
            logger.debug("the accept loop ended", exc_info=True)
            self.stop(ProgramError("ACCEPT_FAILED", "gRPC stopped accepting calls", "another process takes over"))

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE, OPEN_INFERENCE):
            await self._health.set(service, status)


def _credentials_of(tls: Tls) -> grpc.ServerCredentials:
    """Returns what each connection is met with: the files of today."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        now = tls.current()
        return grpc.ssl_server_certificate_configuration([(now.private_key, now.chain)], now.authority)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, tls.current().authority is not None)


def _channel_arguments(config: ServerConfig) -> list[tuple[str, int]]:
    """Bounds what grpcio takes from clients, as far as it can be told to: its defaults set no bound on streams.

    The names are those of channel_arg_names.h in grpc/grpc.
    """
    return [
        ("grpc.so_reuseport", 1),  # the supervisor keeps the port, and does not listen
        ("grpc.max_concurrent_streams", 128),
        # A stream counts for a moment after its end; a client that fills all streams again at once was refused.
        ("grpc.http2.max_deallocating_streams", 256),
        # Calls that have come while the event loop was busy: beyond the first, ever more of them were CANCELLED.
        ("grpc.server.max_pending_requests", config.limits.max_concurrent_requests),
        ("grpc.server.max_pending_requests_hard_limit", 2 * config.limits.max_concurrent_requests),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients may ping to keep an idle connection alive: each of gRPC's libraries and proxies can be told to. More
        # than two pings that come within half a second of the last, with no answer between, end their connection.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ]

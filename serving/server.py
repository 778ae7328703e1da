"""Serves (`python -m serving`): hands settings, model, sockets and front end to the supervisor."""

import contextlib
import importlib
import os
import resource
from importlib.util import find_spec

from atelier.errors import ConfigurationError, ResourceUnavailableError
from atelier.program import how_to_install, say
from atelier.trusted_files import check_secret
from serving.config import ServerConfig, parse_arguments
from serving.listening import Listening, is_loopback
from serving.logs import set_up_logging
from serving.models import ModelVersion, read_version
from serving.playground.process import open_playground
from serving.process import Process
from serving.supervisor import Supervisor

FRONT_ENDS = {"native": "serving.frontends.native.server", "grpcio": "serving.frontends.grpcio.serve"}
NATIVE = "atelier_native"  # the package of native/
LEAST_FILES = 256  # a third of them are no connections


def main(arguments: list[str]) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises ProgramError if it cannot start."""
    config = parse_arguments(arguments)
    set_up_logging(config.log_format, is_debugging="--debug" in arguments)
    return serve_version(config, read_version(config))


def serve_version(config: ServerConfig, version: ModelVersion) -> int:
    """Serves a version that has been read until SIGTERM or SIGINT; returns the exit code. Raises ProgramError."""
    front_end, why = choose_front_end(config.front_end)
    _check_access(config)
    _check_files()
    is_native = front_end == "native"
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(Listening(config.hosts, config.port, only_reserve=not is_native))
        metrics = None
        if config.has_metrics:
            if not is_native and find_spec("prometheus_client") is None:
                cure = f"{how_to_install('serve')}; --metrics-port 0 does without"
                raise ResourceUnavailableError("NO_LIBRARY", "prometheus_client is not installed", cure)
            sockets = Listening(config.metrics_hosts, config.metrics_port_to_open, flag="--metrics-port")
            metrics = stack.enter_context(sockets)

        playground = open_playground(config, listening.addresses[0], stack, only_reserve=not is_native)

        def serve(process: Process) -> None:  # in the process: the supervisor loads no front end and no runtime
            importlib.import_module(FRONT_ENDS[front_end]).serve(process)

        if os.geteuid() == 0:
            cure = "start it as another user (docker run --user)"
            say(f"warning: it runs as root, and needs none of root's rights: {cure}")
        if config.ready_file:
            config.ready_file.unlink(missing_ok=True)  # an earlier server's
        return Supervisor(config, version, serve, listening, metrics, playground, front_end, why).run()


def _check_access(config: ServerConfig) -> None:
    """Raises ConfigurationError INSECURE for an address that others reach without TLS and tokens.

    Raises PermissionRefusedError TOKEN_FILE_MODE if others may open the file of the key, or of the tokens' digests: a
    token that can be guessed is found from its digest.
    """
    for path in (config.tokens, config.tls_key):
        if path is not None:
            check_secret(path)
    lacking = [name for name, has in (("TLS", config.has_tls), ("tokens", config.tokens is not None)) if not has]
    if not lacking:
        return
    cure = "give --tls-certificate, --tls-key and --tokens, or say --insecure"
    if config.playground_port != 0 and not is_loopback(config.playground_host):
        page = f"the page on --playground-host {config.playground_host}"
        _refuse_or_warn(config, f"{page} may be reached by others, without {' and '.join(lacking)}", cure)
    if open_hosts := [host for host in config.hosts if not is_loopback(host)]:
        what = f"{' and '.join(open_hosts)} may be reached by others, without {' and '.join(lacking)}"
        _refuse_or_warn(config, what, cure)


def _check_files() -> None:
    """Raises ConfigurationError TOO_FEW_FILES if the system lets it open hardly more than it needs for itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        what = f"the server may open {hard} files, connections among them, and needs {LEAST_FILES}"
        raise ConfigurationError("TOO_FEW_FILES", what, "ulimit -n 16384, or LimitNOFILE= of the service")


def _refuse_or_warn(config: ServerConfig, what: str, cure: str) -> None:
    if not config.insecure:
        raise ConfigurationError("INSECURE", what, cure)
    say(f"warning: {what}")


def choose_front_end(wanted: str) -> tuple[str, str]:
    """Returns the front end to use, and why in words. Raises ResourceUnavailableError NO_NATIVE."""
    if wanted == "grpcio":
        return "grpcio", ""
    if find_spec(NATIVE) is not None:
        return "native", ""
    cure = "with cargo installed, make setup builds it; or use --front-end grpcio"
    if wanted == "native":
        raise ResourceUnavailableError("NO_NATIVE", f"the native front end ({NATIVE}) is not installed", cure)
    return "grpcio", " (the native one is not installed: with cargo, make setup builds it)"

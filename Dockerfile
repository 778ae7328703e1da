# Three images: train (trains and exports, CUDA where there is a GPU), serve (CPU), serve-gpu.
#
#   docker build --target train --tag atelier-train . && mkdir -p data artifacts
#   alias atelier='docker run --rm --user $(id -u) --volume ./data:/app/data --volume ./artifacts:/app/artifacts'
#   atelier --gpus all atelier-train training        (without --gpus all where there is no GPU)
#   atelier --gpus all atelier-train export
#   with TensorRT: --build-arg RUNTIME=gpu, and export --version-compatible, which the lean runtime of serve-gpu needs
#
#   docker build --target serve --tag atelier .
#   docker run --rm --read-only --cap-drop ALL --security-opt no-new-privileges --stop-timeout 40 \
#       --volume ./artifacts/models:/models:ro --publish 127.0.0.1:50051:50051 --publish 127.0.0.1:8002:8002 atelier
#
# serve-gpu runs like serve, with --gpus all (the NVIDIA Container Toolkit provides the driver, the wheels all else).
#
# The images serve with the native front end, which a stage of its own builds; --build-arg FRONT_END=grpcio leaves it out, and
# with it Rust: keep such images on trusted networks, or behind a proxy. With TLS flags, give --no-healthcheck too: the check
# below speaks plain text.
#
# Docker 23 or later, or Podman with Buildah 1.41 or later: older ones do not know COPY --link.

# The Python that the versions in constraints.txt were tested with, and the Rust of native/Cargo.toml, or a later one, each by
# the digest of the official image for all processors. They do not move by themselves: docs/supply-chain.md says how to.
ARG PYTHON_IMAGE=python:3.11-slim-trixie@sha256:00f89b7f96f13d42900483da3253f8fb2e763eed7a0aa5f0358fec9d15d9f10c
ARG RUST_IMAGE=rust:1-slim@sha256:8ce659250d9f7783105e69af45d78c0b2308bf78bd5640182986944efe3a4579
ARG FRONT_END=native


# --- What is installed, apart from what is ours: a change in the source installs nothing anew ------------------------

FROM ${PYTHON_IMAGE} AS requirements
# What builds TensorRT engines (RUNTIME=gpu below) lies on the package index of NVIDIA; serving needs only the lean runtime.
# Where that is reached through a mirror, or where pip should take it from there, its address goes here; pip reads
# the variable by itself.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt ./
COPY requirements requirements
RUN python -m venv --without-pip /opt/venv

FROM requirements AS requirements-serve
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: --requirement requirements/serve.txt

FROM requirements AS requirements-gpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: \
        --requirement requirements/gpu.txt --requirement requirements/rtx.txt

FROM requirements AS requirements-train
# gpu: the export builds a TensorRT engine too, where the container sees a GPU.
ARG RUNTIME=serve
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: \
        --requirement requirements/train.txt --requirement requirements/export.txt \
        --requirement requirements/rtx.txt --requirement "requirements/${RUNTIME}.txt" \
    && if [ "${RUNTIME}" = gpu ]; then \
        pip --python /opt/venv/bin/python install --constraint constraints.txt tensorrt polygraphy; fi

# What builds wheels, in the image's own Python.
FROM requirements AS builders
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --only-binary :all: --requirement requirements/build.txt


# --- What is ours: the wheel, which generates the protobuf modules, unpacked and compiled ----------------------------

FROM builders AS build
COPY . .
# Bytecode that is never checked against its source: nobody can write it later, with a read-only root.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
    && python -m zipfile --extract /wheel/atelier-*.whl /app \
    && python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${RUST_IMAGE} AS rust

# The extension, unpacked: /native/atelier_native. On Python's own base, for it runs with that C library.
FROM builders AS front-end-native
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --link --from=rust /usr/local/cargo /usr/local/cargo
COPY --link --from=rust /usr/local/rustup /usr/local/rustup
ENV PATH=/usr/local/cargo/bin:$PATH CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup CARGO_TARGET_DIR=/build/target
COPY protos protos
COPY native native
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=cache,target=/usr/local/cargo/registry \
    python native/pins.py restore \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheel ./native \
    && python -m zipfile --extract /wheel/atelier_native-*.whl /native

# Without it.
FROM requirements AS front-end-grpcio
RUN mkdir /native

FROM front-end-${FRONT_END} AS front-end


# --- What runs -------------------------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# ONNX Runtime otherwise stores an identifier of the device under the home as soon as it is imported.
ENV ORT_DISABLE_TELEMETRY=1
RUN groupadd --gid 10001 atelier \
    && useradd --uid 10001 --gid atelier --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin atelier
WORKDIR /app

FROM runtime AS train
# Whoever runs it (--user) owns data and artifacts; without --user it is atelier.
RUN install --directory --owner atelier --group atelier data artifacts
COPY --link --from=requirements-train /opt/venv /opt/venv
COPY --link --from=build /app /app
ENV HOME=/tmp NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME ["/app/data", "/app/artifacts"]
ENTRYPOINT ["python", "-m"]
CMD ["training"]

FROM runtime AS server
# The source lies below /opt/venv, so that both servers share this stage. With --link a change of the source leaves the
# layer of /opt/venv as it is, where containerd stores the images (Docker 29's default); elsewhere it is copied anew.
COPY --link --from=build /app/serving /app/serving
COPY --link --from=build /app/atelier /app/atelier
COPY --link --from=front-end /native /app
USER 10001:10001
# The model repository, artifacts/models; the server only reads it.
VOLUME ["/models"]
# gRPC, and the metrics for Prometheus.
EXPOSE 50051 8002
# Drains; give it --stop-timeout (terminationGracePeriodSeconds) of more than --drain-timeout-s, 30 s.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "atelier.classify", "--health", "--timeout-s", "3"]
# More flags go behind the image's name. Inside, the ports stay 50051 and 8002: publish them as others.
# Inside, everything may connect: whoever publishes the port beyond this machine gives TLS and tokens as flags.
ENTRYPOINT ["python", "-m", "serving", "--repository", "/models", "--host", "0.0.0.0", "--insecure"]

FROM server AS serve-gpu
COPY --link --from=requirements-gpu /opt/venv /opt/venv
# Compiled kernels would be cached in a home that is not there.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility CUDA_CACHE_DISABLE=1

# Last, so that a plain `docker build .` makes this one.
FROM server AS serve
COPY --link --from=requirements-serve /opt/venv /opt/venv

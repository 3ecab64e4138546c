# The server with PyTorch in one image, models mounted at /models. Two targets:
#   docker build --target cpu -t opara-serve:cpu .
#   docker build --target cuda -t opara-serve:cuda .      (then: docker run --gpus all ...)
# CUDA's user-space libraries come with torch; the driver comes from the host.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/opara
WORKDIR /src
COPY constraints.txt ./

# torch first and alone: the layer stays cached while the code changes
FROM build AS build-cpu
# An index to look for torch in besides pip's own: what PyTorch's "Get started" page gives as --index-url for CPUs. Without
# one the image has CUDA's libraries, which nothing uses, and is several times as large.
ARG TORCH_INDEX_URL
RUN /opt/opara/bin/pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    --constraint constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY protos protos
RUN /opt/opara/bin/pip install --constraint constraints.txt ".[server,tracing]"

FROM build AS build-cuda
RUN /opt/opara/bin/pip install --constraint constraints.txt torch==2.11.0
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY protos protos
RUN /opt/opara/bin/pip install --constraint constraints.txt ".[server,gpu,tracing]"

FROM ${BASE_IMAGE} AS runtime
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/opara --shell /usr/sbin/nologin opara \
    && install --directory --owner opara --group opara /var/cache/opara
ENV PATH=/opt/opara/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Plans hold all that serving needs. What compilers keep makes only a search shorter that begins again: on the same volume.
ENV TRITON_HOME=/var/cache/opara TRITON_CACHE_DIR=/var/cache/opara/triton TORCHINDUCTOR_CACHE_DIR=/var/cache/opara/inductor
WORKDIR /var/lib/opara
VOLUME /var/cache/opara
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# The start period covers exporting, measuring and capturing the models.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["opara-client", "health", "--target", "127.0.0.1:50051", "--timeout", "4"]
ENTRYPOINT ["opara-server"]
CMD ["serve", "--models=/models", "--app-dir=/models", "--host=0.0.0.0", "--metrics-host=0.0.0.0", \
    "--cache-dir=/var/cache/opara"]

FROM runtime AS cuda
# Triton, which fuses operators, compiles the host's half of each kernel with it
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/opara /opt/opara
USER 10001:10001

# Last, so that it is what a build without --target makes. No compiler: on CPUs operators are PyTorch's own.
FROM runtime AS cpu
COPY --from=build-cpu /opt/opara /opt/opara
USER 10001:10001

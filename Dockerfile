# The server with PyTorch in one image, models mounted at /models. Without arguments it is for CPUs:
#   docker build -t opara-serve .
# For GPUs, with the version of torch that the kernels are verified with:
#   docker build -t opara-serve:cuda --build-arg KIND=cuda .
#   docker run --gpus all ...
# CUDA's user-space libraries come with torch; the driver comes from the host.
ARG BASE_IMAGE=python:3.12-slim
ARG KIND=cpu

FROM ${BASE_IMAGE} AS cpu
ENV PINNED_TORCH=2.13.0
FROM ${BASE_IMAGE} AS cuda
ENV PINNED_TORCH=2.11.0

FROM ${KIND} AS build
ARG TORCH_VERSION=
# An index to look for torch in besides pip's own: what PyTorch's "Get started" page gives as --index-url. One with
# CPU-only builds (.../whl/cpu) makes the CPU's image several times smaller.
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/opara
WORKDIR /src
COPY constraints.txt ./
# torch first and alone: the layer stays cached while the code changes
RUN /opt/opara/bin/pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    --constraint constraints.txt "torch==${TORCH_VERSION:-$PINNED_TORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY protos protos
RUN /opt/opara/bin/pip install --constraint constraints.txt ".[server,gpu]"

FROM ${BASE_IMAGE}
# Triton, which fuses operators on GPUs, compiles with it
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/opara --shell /usr/sbin/nologin opara \
    && install --directory --owner opara --group opara /var/cache/opara
COPY --from=build /opt/opara /opt/opara
ENV PATH=/opt/opara/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# what is compiled is kept in the plans; these are for compiling alone, and must be writable where the image is not
ENV TRITON_HOME=/tmp TRITON_CACHE_DIR=/tmp/triton TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
USER 10001:10001
WORKDIR /var/lib/opara
VOLUME /var/cache/opara
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# The start period covers exporting, measuring and capturing the models.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["opara-client", "health", "--target", "127.0.0.1:50051"]
ENTRYPOINT ["opara-server"]
CMD ["serve", "--models=/models", "--app-dir=/models", "--host=0.0.0.0", "--metrics-host=0.0.0.0", \
    "--cache-dir=/var/cache/opara"]

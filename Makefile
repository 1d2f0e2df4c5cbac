# make demo    the whole job on the embedded example, ends with the path of the report
# make test    lint, types and tests
# Both set everything up first, in .venv; they need git, make and Python 3.10 or newer.
# make slow    CI's slow job, two of its parts at a time:
#   make lowest       families, laws and the whole job with the lowest versions that are allowed
#                     (the lock has the highest, with which `make test` runs)
#   make consumers    exports work in Optimum and onnxruntime-genai, and what others export is cut right
#   make browser      reports in a headless Chromium or Chrome, which has to be there
#   make junit        what `check --junit` writes is valid by the schema of Jenkins' xUnit plugin
#   make node         an exported classifier answers the same in Node, which has to be there
# A job of its own every night, a quarter of an hour of one core:
#   make fuzz         every reader fed with files that are nearly right, some of them guided by coverage
# Before a release, into dist/ (SECURITY.md):
#   make dist         wheel and sdist of the last commit, built twice alike and installed on their own
#   make sbom         what requirements.lock holds, as a CycloneDX bill of materials
#   make audit        no version of requirements.lock is known to be vulnerable

PYTHON ?= python3
BIN := .venv/bin
SUPPLY := .cache/supply
# What is tried with the lowest versions: laws, files, and the whole job.
LOWEST := $(patsubst %,tests/test_%.py,laws stacks several_stacks samples exporting generation benchmarking reporting \
	terminal cli end_to_end)

.PHONY: demo test test-fast slow lowest consumers browser junit node fuzz dist sbom audit format clean

demo: .venv/ready
	$(BIN)/tapioca-export demo --output demo-run --overwrite

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadgroup

test-fast: .venv/ready
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

slow:
	$(MAKE) -j 2 --keep-going lowest consumers browser junit node

lowest: .cache/lowest/ready
	PYTHONPATH=$(CURDIR) .cache/lowest/bin/python benchmarks/families.py > .cache/lowest/families.md
	PYTHONPATH=$(CURDIR) .cache/lowest/bin/pytest -m "not slow" $(LOWEST)

.cache/lowest/ready: requirements.lowest.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "requirements.lowest.lock is for Python 3.11; name it with: make PYTHON=python3.11 lowest"; exit 1; }
	rm -rf .cache/lowest
	$(PYTHON) -m venv .cache/lowest
	.cache/lowest/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

consumers: .venv/ready .cache/consumers/venv/ready .cache/consumers/genai/ready
	$(BIN)/python tests/consumers/make_exports.py .cache/consumers/exports
	.cache/consumers/venv/bin/python tests/consumers/check_exports.py .cache/consumers/exports
	.cache/consumers/venv/bin/python tests/consumers/make_graphs.py .cache/consumers/graphs
	PYTHONPATH=.cache/consumers/genai $(BIN)/python tests/consumers/make_graphs.py .cache/consumers/graphs genai
	$(BIN)/python tests/consumers/check_cuts.py .cache/consumers/graphs

# The builder of onnxruntime-genai wants a newer transformers than Optimum does: it runs in ours.
.cache/consumers/genai/ready: tests/consumers/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .cache/consumers/genai $$(grep ^onnxruntime-genai== $<)
	touch $@

.cache/consumers/venv/ready: tests/consumers/requirements.lock
	$(PYTHON) -m venv .cache/consumers/venv
	.cache/consumers/venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

browser: .venv/ready
	$(BIN)/tapioca-export demo --output .cache/browser --overwrite --quiet
	$(BIN)/python tests/consumers/check_browser.py .cache/browser/report.html

junit: .venv/ready .cache/junit/junit-10.xsd
	PYTHONPATH=$(CURDIR):.cache/junit $(BIN)/python tests/consumers/check_junit.py .cache/junit/junit-10.xsd

# pytest tests its own output by that schema, and has it in its source distribution.
.cache/junit/junit-10.xsd: .venv/ready
	rm -rf .cache/junit
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target .cache/junit xmlschema==4.3.2
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary pytest \
		--dest .cache/junit $$(sed -n 's/^pytest==/&/p' requirements.lock)
	tar -xzf .cache/junit/pytest-*.tar.gz --strip-components 3 -C .cache/junit --wildcards '*/junit-10.xsd'
	touch $@

node: .venv/ready .cache/node/ready
	$(BIN)/python tests/consumers/check_node.py .cache/node

.cache/node/ready: Makefile
	npm install --prefix .cache/node --no-audit --no-fund --ignore-scripts \
		onnxruntime-node@1.30.0 @huggingface/tokenizers@0.2.0
	touch $@

fuzz: .venv/ready .cache/fuzz/ready
	PYTHONPATH=$(CURDIR):$(CURDIR)/.cache/fuzz $(BIN)/python -m benchmarks.reliability.fuzzing

# It instruments bytecode, and is nothing that tests should find.
.cache/fuzz/ready: .venv/ready
	rm -rf .cache/fuzz
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .cache/fuzz atheris==3.0.0
	touch $@

dist: .venv/ready $(SUPPLY)/ready
	$(BIN)/python .ci/make_dist.py $(SUPPLY) \
		$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

sbom: $(SUPPLY)/ready
	mkdir -p dist
	$(SUPPLY)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --output-format JSON --output-file dist/sbom.cdx.json

audit: $(SUPPLY)/ready
	$(SUPPLY)/bin/python .ci/audit.py $(SUPPLY)/bin/pip-audit

$(SUPPLY)/ready: .ci/requirements.lock
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache demo-run

.venv/ready: requirements.lock pyproject.toml setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

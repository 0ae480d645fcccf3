# make demo        the main job, small, on a CPU: train, generate, write out/demo/report.html
# make test        ruff, then pyright and all tests that are not marked slow side by side
# make test-slow   the others: all cases of the large products, small trainings, the wheel in a fresh environment, timings
# make test-gpu    what needs a CUDA device, under 9 minutes: tests, generation and training beside transformers, one table
# make check       ruff, pyright, the layout test
# make docs        build the documentation's site, out/site/index.html; works offline
# make bundled     train the bundled models again from their configs, about half a day on 2 cores; one of them: make
#                  bundled-voice, bundled-emoji, bundled-digits, bundled-speech. What each needs is said below
# make clean       remove what these made, except the virtual environment
#
# Every target makes .venv by itself when it is missing. Settings, all optional:
#   PYTHON=python3.12        the interpreter that makes .venv (3.10 or newer)
#   TORCH_INDEX=URL          where torch comes from; for a small CPU build: https://download.pytorch.org/whl/cpu
#   DEMO=out/demo            where `make demo` writes
#   PYTEST_FLAGS=...         handed to pytest
#   PYTEST_PROCESSES=2       how many processes share the tests
#   GPU_PYTHON=python3       for test-gpu: an interpreter that has torch for CUDA, instead of .venv

PYTHON ?= python3
TORCH_INDEX ?=
DEMO ?= out/demo
PYTEST_FLAGS ?=
PYTEST_PROCESSES ?= 2

BIN := .venv/bin
GPU_PYTHON ?= $(BIN)/python
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
INSTALLED := .venv/.installed
# The extra eval, which tests use. What benchmarks alone use is the extra bench: pip install -e '.[eval,bench]'.
EVAL_PACKAGES := scikit-learn scikit-image torchmetrics auraloss pystoi prdc pocketsphinx jiwer constriction pesq

# One thread per process: tests start several processes, and their tensors are too small to be worth sharing out. Bytecode
# is kept, whatever the caller sets: most of those processes live for a second.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu PYTHONDONTWRITEBYTECODE=

.PHONY: install demo test fast-tests test-slow test-gpu check lint types docs clean
.PHONY: bundled bundled-digits bundled-speech bundled-voice bundled-emoji

install: $(INSTALLED)

# torch first and pinned, then deepspeed (a source package that looks at the installed torch), then Tessera and the rest.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Tessera needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo "no virtual environment: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv: torch first, which is the largest part. This takes some minutes."
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(INSTALL) numpy 'setuptools>=77' wheel ninja
	@$(INSTALL) --no-build-isolation deepspeed || \
		echo "note: deepspeed did not install; 'engine.kind: torch' trains without it" >&2
	@echo "Installing Tessera and what it uses."
	@$(INSTALL) --no-build-isolation -e '.[demo,dev,docs]' tensorboard
	@$(INSTALL) $(EVAL_PACKAGES) || for package in $(EVAL_PACKAGES); do \
		$(INSTALL) $$package || \
			echo "note: $$package did not install (pesq needs a C compiler); what it measures is left out" >&2; \
	done
	@touch $(INSTALLED)

# pyright wants the package under its own name, and the root folder may be called anything: it reads through a link.
.typecheck/tessera:
	@mkdir -p .typecheck
	@ln -sfn ../pyproject.toml .typecheck/pyproject.toml
	@ln -sfn .. .typecheck/tessera

demo: $(INSTALLED)
	$(BIN)/tessera demo --out $(DEMO)

check: lint types
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest tests/test_layout.py

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED) .typecheck/tessera
	$(BIN)/pyright --project .typecheck --pythonpath $(BIN)/python

fast-tests: $(INSTALLED)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist worksteal -rs $(PYTEST_FLAGS)

# pyright keeps one core busy for most of a minute: it runs beside the tests. The layout test is one of the tests.
test: lint
	@$(MAKE) --no-print-directory -j 2 types fast-tests

test-slow: $(INSTALLED)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m slow -n $(PYTEST_PROCESSES) --dist worksteal -rs $(PYTEST_FLAGS)

test-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(INSTALLED)) .typecheck/tessera
	PYTHONPATH=$(CURDIR)/.typecheck $(GPU_PYTHON) benchmarks/gpu.py

# The variable silences an advertisement of another program.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "out/site/index.html"

# OMP_NUM_THREADS=1 because the committed weights were made with it: another number of threads rounds differently.
bundled bundled-%: export OMP_NUM_THREADS := 1
bundled: bundled-digits bundled-speech bundled-voice bundled-emoji

# Ten minutes.
bundled-digits: $(INSTALLED)
	$(BIN)/tessera tokenizer train configs/digits/tokenizer.yaml --out out/digits/tokenizer
	$(BIN)/tessera shards configs/digits/shards.yaml
	$(BIN)/tessera shards configs/digits/shards.yaml --set corpus.path=samples/digits/test.safetensors --set out=out/digits/shards/test
	$(BIN)/tessera train configs/digits/lm.yaml --out out/digits/lm
	$(BIN)/tessera tokenizer coder configs/digits/coder.yaml --out out/digits/coder
	rm -rf bundled/digits && cp -r out/digits/lm/model bundled/digits && cp -r out/digits/coder bundled/digits/coder

# Needs espeak-ng. An hour and a half.
bundled-speech: $(INSTALLED)
	$(BIN)/python -m tessera.samples.make_speech --count 20000 --seed 1 --exclude samples/speech/test/metadata.jsonl --out out/speech/corpus
	$(BIN)/tessera tokenizer train configs/speech/tokenizer.yaml --out out/speech/tokenizer
	$(BIN)/tessera shards configs/speech/shards.yaml
	$(BIN)/tessera shards configs/speech/shards.yaml --set corpus.path=samples/speech/test --set out=out/speech/shards/test
	$(BIN)/tessera train configs/speech/lm.yaml --out out/speech/lm
	$(BIN)/tessera tokenizer coder configs/speech/coder.yaml --out out/speech/coder
	rm -rf bundled/speech && cp -r out/speech/lm/model bundled/speech && cp -r out/speech/coder bundled/speech/coder

# Needs flite, wordnet-base, and `pip install hibari-tts onnx`. Seven hours on one core.
bundled-voice: $(INSTALLED)
	$(BIN)/python -m tessera.samples.make_voice --out out/voice/corpus
	$(BIN)/tessera tokenizer train configs/voice/tokenizer.yaml --out out/voice/tokenizer --resume
	$(BIN)/tessera shards configs/voice/shards.yaml
	$(BIN)/tessera shards configs/voice/shards.yaml --set corpus.path=out/voice/corpus/test/items --set out=out/voice/shards/test
	$(BIN)/tessera train configs/voice/lm.yaml --out out/voice/lm --resume
	rm -rf bundled/voice && cp -r out/voice/lm/model bundled/voice

# Needs the npm packages that samples/make_emoji.py names, in out/emoji/packages. Three hours on one core.
bundled-emoji: $(INSTALLED)
	$(BIN)/python -m tessera.samples.make_emoji --packages out/emoji/packages --out out/emoji/corpus
	$(BIN)/tessera tokenizer train configs/emoji/tokenizer.yaml --out out/emoji/tokenizer --resume
	$(BIN)/tessera shards configs/emoji/shards.yaml
	$(BIN)/tessera shards configs/emoji/shards.yaml --set corpus.path=out/emoji/corpus/test --set out=out/emoji/shards/test
	$(BIN)/tessera train configs/emoji/lm.yaml --out out/emoji/first --resume
	$(BIN)/tessera train configs/emoji/lm-noise.yaml --out out/emoji/lm --resume
	rm -rf bundled/emoji && cp -r out/emoji/lm/model bundled/emoji

clean:
	rm -rf build dist out runs *.egg-info .typecheck .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# make demo   the whole story on a real language model (about 6 minutes on 2 cores)
# make test   lint, types and the fast tests
# make coverage  the fast tests, and the lines of src that they reach
# make bench  the slow tests, and the suites of quality and speed, which write benchmarks/results/ (hours; slow,
#             bench-quality, bench-speed)
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
JOBS ?= 2

.PHONY: demo test lint browser coverage bench slow bench-quality bench-speed clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/headwater demo --out headwater-demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the browser tests want a Chromium: installed where this may install packages, else they are skipped
browser:
	@if [ -n "$$HEADWATER_BROWSER" ] || command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; then :; \
	else echo "make test: no Chromium found, the browser tests will be skipped (HEADWATER_BROWSER names one)"; fi

test: lint browser
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

coverage: $(VENV)/.installed
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n $(JOBS) --dist loadfile -m "not slow"
	$(BIN)/python -m coverage combine -q
	{ echo "# Lines of src that the fast tests reach"; echo; echo "Command: \`make coverage\`, $$(date +%F). Files with all lines reached are left out."; echo; \
	  $(BIN)/python -m coverage report --format=markdown; } > benchmarks/results/coverage.md
	$(BIN)/python -m coverage report --fail-under 95

bench: slow bench-quality bench-speed

slow: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[ray]"
	$(BIN)/python -m pytest -m slow

bench-quality: $(VENV)/.installed
	@test -n "$(HEADWATER_DATA)" || { echo "make bench: set HEADWATER_DATA to the folder with facts_qa_wikidata.jsonl and xsum_test_short.jsonl"; exit 2; }
	$(BIN)/python benchmarks/step_convergence.py
	$(BIN)/python benchmarks/truth.py --work benchmarks/work/truth
	$(BIN)/python benchmarks/facts.py --work benchmarks/work --difference
	$(BIN)/python benchmarks/auto_beta.py --work benchmarks/work
	$(BIN)/python benchmarks/projection.py --work benchmarks/work
	$(BIN)/python benchmarks/agreement.py --work benchmarks/work
	$(BIN)/python benchmarks/families.py --work benchmarks/work/families
	$(BIN)/python benchmarks/diagnose.py --work benchmarks/work/diagnose
	$(BIN)/python benchmarks/study.py --case facts --work benchmarks/work/study
	$(BIN)/python benchmarks/study.py --case facts --lora --work benchmarks/work/study --seeds 0
	$(BIN)/python benchmarks/study.py --case xsum --whole --work benchmarks/work/study --seeds 0 --light --rank 16
	$(BIN)/python benchmarks/study.py --case xsum --whole --work benchmarks/work/study --seeds 0 --tokens --rank 16
	$(BIN)/python benchmarks/study.py --case xsum --work benchmarks/work/study --tokens --trak --rank 16
	$(BIN)/python benchmarks/study.py --case facts --work benchmarks/work/study --tokens --trak --literal --rank 16
	for case in identity backdoor; do $(BIN)/python benchmarks/study.py --case $$case --work benchmarks/work/study --tokens --rank 16 || exit 1; done
	$(BIN)/python benchmarks/study.py --case facts --lora --work benchmarks/work/study --tokens --rank 16
	$(BIN)/python benchmarks/study.py --case xsum --lora --work benchmarks/work/study --seeds 1 --tokens --rank 16
	$(BIN)/python benchmarks/study.py --case xsum --work benchmarks/work/study --seeds 1 2 --tokens --trak --rank 16 --suffix confirmed
	$(BIN)/python benchmarks/study.py --case xsum --whole --work benchmarks/work/study --seeds 1 2 --tokens --trak --rank 16 --suffix confirmed
	$(BIN)/python benchmarks/study.py --case xsum --whole --work benchmarks/work/study --seeds 1 --tokens --trak --literal --rank 16 --suffix paper
	$(BIN)/python benchmarks/study.py --case xsum --lora --whole --work benchmarks/work/study --seeds 1 --tokens --rank 16
	for case in identity backdoor; do $(BIN)/python benchmarks/study.py --case $$case --whole --work benchmarks/work/study --tokens --trak --rank 16 || exit 1; done
	$(BIN)/python benchmarks/spans.py
	for case in facts xsum; do $(BIN)/python benchmarks/groupings.py --case $$case --work benchmarks/work/study || exit 1; done
	$(BIN)/python benchmarks/false_alarms.py --case facts --work benchmarks/work/study --seeds 0 1 2
	$(BIN)/python benchmarks/false_alarms.py --case xsum --work benchmarks/work/study --seeds 1 2
	$(BIN)/python benchmarks/beta_rules.py --work benchmarks/work/study --cases facts facts-lora xsum xsum-lora identity backdoor
	$(BIN)/python benchmarks/debias.py --work benchmarks/work/debias --seeds 0 1
	for case in demo facts xsum; do $(BIN)/python benchmarks/repair.py --case $$case --work benchmarks/work/repair || exit 1; done

bench-speed: $(VENV)/.installed
	$(BIN)/python benchmarks/scaling.py --work benchmarks/work/scaling
	$(BIN)/python benchmarks/index_build.py --work benchmarks/work/build
	$(BIN)/python benchmarks/kills.py --work benchmarks/work/kills
	$(BIN)/python benchmarks/scale.py --work benchmarks/work/scale
	$(BIN)/python benchmarks/index_query.py --work benchmarks/work --repeats 7
	bash benchmarks/speed/install_rivals.sh benchmarks/work/rivals
	$(BIN)/python benchmarks/speed/speed.py --work benchmarks/work/speed --venvs benchmarks/work/rivals --tasks collect exact8 pertoken
	$(BIN)/python benchmarks/speed/speed.py --work benchmarks/work/speed --venvs benchmarks/work/rivals --rounds 3 --tasks collect --tools headwater floor bergson --out benchmarks/results/floor
	$(BIN)/python benchmarks/speed/speed.py --work benchmarks/work/speed --venvs benchmarks/work/rivals --rounds 3 --tasks ekfac --variants plain --out benchmarks/results/ekfac

clean:
	rm -rf $(VENV) headwater-demo build dist

"""Mutation testing of scores, index, gradients and significance: do the tests notice when that code is wrong?

    python benchmarks/mutation.py --work DIR [--sample 300] [--seed 0]

Needs mutmut beside the project's own packages: pip install mutmut==3.8.1

A copy of the tree is made under --work, and mutmut writes every mutant of these modules into it: a number one larger,
an argument that is None or missing, a comparison or an operator that is another, a string in capitals. Decorated
functions other than class and static methods it leaves alone. The sample is drawn evenly from all mutants. The tests
are collected once; one pass over them, without a mutant, says which test reaches which function and how long it takes
(kept under --work while sources and tests are the same).
Then each mutant of the sample gets a forked process and the tests that reach its function, those first that say most
about it, until one fails. A test file's first few cases come before the others, and --seconds is as much as is tried:
a mutant that lives that long counts as survived, whatever the remaining tests would have said. Curvature is left out:
its tests are the slow ones.

    killed      a test fails, or the process dies
    timeout     more than five times the processor time of the same tests without a mutant, and a minute
    survived    all tests that were tried pass
    no tests    no test reaches the function

Killed and timeouts are what the score counts. Every test that killed one runs once more, alone and without a mutant;
one that fails then has killed nothing. Writes benchmarks/results/mutation.json, with what every survivor changes, and
mutation.md. With --mutants or --tests, for a look at some of them, nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
from made import RESULTS, environment

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "src/headwater"
MODULES = ("scores.py", "significance.py", "index/*.py", "gradients/*.py")
TESTS = (
    "tests/test_scores.py", "tests/test_significance.py", "tests/index", "tests/gradients", "tests/methods",
    "tests/attribution/test_index.py", "tests/attribution/test_index_placebo.py", "tests/attribution/test_loop.py",
    "tests/attribution/test_words.py", "tests/attribution/test_measuring.py", "tests/attribution/test_signals.py",
    "tests/attribution/test_curved.py", "tests/properties", "tests/forecast", "tests/report", "tests/test_sources.py",
    "tests/bad_inputs",
)  # fmt: skip
CASES = 3
"""Of a parametrized test, before the other tests' cases have had their turn."""
PATIENCE, GRACE = 5, 60
"""A mutant may take so many times the processor time of its tests, and so many seconds more."""
POLL = 0.02
MEMORY = 16 << 30
"""Bytes of address space."""
OUTCOMES = ("killed", "timeout", "survived", "no tests")


# ---- the mutants ----------------------------------------------------------------------------------------------------


def copied(tree: Path) -> None:
    """What git would commit, without its history."""
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def mutated(tree: Path) -> dict[str, dict[str, Any]]:
    """All mutants of the modules, written into the copy: name -> module, function, change."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    found = {}
    for path in sorted(path for pattern in MODULES for path in (tree / PACKAGE).glob(pattern)):
        made = mutate_file_contents(str(path.relative_to(tree)), path.read_text())
        path.write_text(made.code)
        lines = made.code.splitlines()

        def source(name: str, lines: list[str] = lines, spans: Any = made.line_span_by_function_name) -> list[str]:
            return textwrap.dedent("\n".join(lines[spans[name].start - 1 : spans[name].end])).splitlines()

        module = ".".join(path.relative_to(tree / "src").with_suffix("").parts).removesuffix(".__init__")
        for name in made.mutant_names:
            function = name.partition("__mutmut_")[0]
            before = [line.replace(f"{function}__mutmut_orig", function) for line in source(f"{function}__mutmut_orig")]
            after = [line.replace(name, function) for line in source(name)]
            found[f"{module}.{name}"] = {
                "module": str(path.relative_to(tree / PACKAGE)),
                "function": f"{module}.{function}",
                "change": list(difflib.unified_diff(before, after, lineterm="", n=1))[2:],
            }
    return found


# ---- the tests ------------------------------------------------------------------------------------------------------


class Trial:
    """Runs in place of the tests, once they are collected."""

    def __init__(self, work: Path, mutants: dict[str, dict[str, Any]], seconds: float, key: str) -> None:
        self.work, self.mutants, self.seconds, self.key = work, mutants, seconds, key
        self.found: dict[str, dict[str, Any]] = {}
        self.failing: list[str] = []
        self.report: Any = None  # what is done with the report of a test that fails

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.report is not None:
            self.report(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Failed("the tests cannot be collected")
        reached = self.without(session)
        self.failing = [name for name, test in reached.items() if test["failed"]]
        by_function: dict[str, list[str]] = defaultdict(list)
        for name, test in reached.items():
            for function in test["functions"] if not test["failed"] else ():
                by_function[function].append(name)
        items = {item.nodeid: item for item in session.items}
        for number, (name, mutant) in enumerate(self.mutants.items(), 1):
            tests = self.chosen(mutant["module"], by_function[mutant["function"]], reached)
            cost = sum(reached[test]["cpu_s"] for test in tests)
            started = time.monotonic()
            outcome, by = self.tried(name, [items[test] for test in tests], cost) if tests else ("no tests", "")
            self.found[name] = mutant | {
                "outcome": outcome,
                "by": by,
                "tests": len(tests),
                "of": len(by_function[mutant["function"]]),
                "wall_s": round(time.monotonic() - started, 1),
            }
            (self.work / "found.json").write_text(json.dumps(self.found))
            line = {key: self.found[name][key] for key in ("outcome", "tests", "of", "wall_s")}
            print(f"{number}/{len(self.mutants)} {name}: {line}", file=sys.__stderr__, flush=True)
            shutil.rmtree(self.work / "tmp", ignore_errors=True)
            (self.work / "tmp").mkdir(exist_ok=True)
        for test in sorted({mutant["by"] for mutant in self.found.values()} - {""}):
            if self.tried("", [items[test]], reached[test]["cpu_s"])[0] != "survived":
                self.failing.append(test)
                for mutant in self.found.values():
                    if mutant["by"] == test:
                        mutant["outcome"] = "survived"
        return True

    def without(self, session: pytest.Session) -> dict[str, Any]:
        """The tests without a mutant, in a process of their own: which functions each reaches, and what it costs."""
        import mutmut.mutation.trampoline as trampoline

        file = self.work / f"reached-{self.key}.json"
        if file.exists():
            kept: dict[str, Any] = json.loads(file.read_text())
            return kept
        if not (child := os.fork()):
            hits: set[str] = set()
            trampoline.record_trampoline_hit = lambda name, caller=None: hits.add(name)
            trampoline.set_mutant_under_test("stats")
            failed: set[str] = set()
            self.report = lambda report: failed.add(report.nodeid)
            reached = {}
            for item, after in zip(session.items, [*session.items[1:], None], strict=True):
                hits.clear()
                started = time.process_time()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                cost = time.process_time() - started
                name = item.nodeid
                reached[name] = {"functions": sorted(hits), "cpu_s": round(cost, 3), "failed": name in failed}
            file.write_text(json.dumps(reached))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise session.Failed("the tests could not be run without a mutant")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def chosen(self, module: str, names: Iterable[str], reached: dict[str, Any]) -> list[str]:
        """The tests for a mutant of this module: its own first, then those that reach little else."""
        package, _, stem = module.removesuffix(".py").rpartition("/")
        own = f"tests/{package}/" if package else f"tests/test_{stem}.py"
        turn: Counter[str] = Counter()
        order = []
        for name in sorted(names, key=lambda name: reached[name]["cpu_s"]):
            test = name.partition("[")[0]
            away = 0 if f"{own}test_{stem}.py".startswith(test.partition("::")[0]) else 1 if name.startswith(own) else 2
            order.append((turn[test] // CASES, away, len(reached[name]["functions"]), name))
            turn[test] += 1
        kept, cost = [], 0.0
        for *_, name in sorted(order):
            if not kept or cost + reached[name]["cpu_s"] <= self.seconds:
                kept.append(name)
                cost += reached[name]["cpu_s"]
        return kept

    def tried(self, mutant: str, items: list[pytest.Item], cost: float) -> tuple[str, str]:
        """What became of a mutant, and the test that killed it."""
        from mutmut.mutation.trampoline import set_mutant_under_test

        killer = self.work / "killer"
        killer.write_text("")
        if not (child := os.fork()):
            os.setsid()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            used, limit = int(time.process_time()), int(PATIENCE * cost + GRACE)
            resource.setrlimit(resource.RLIMIT_CPU, (used + limit, used + limit + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            self.report = lambda report: (killer.write_text(report.nodeid), os._exit(1))
            set_mutant_under_test(mutant)
            try:
                for item, after in zip(items, [*items[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            except BaseException:
                os._exit(1)
            os._exit(0)
        left, late = 4 * (PATIENCE * cost + GRACE), False  # for one that sleeps; seconds in which both were stopped not
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if left < 0 and not late:
                late = True
                os.killpg(child, signal.SIGKILL)
            time.sleep(POLL)
            left -= POLL
        with contextlib.suppress(ProcessLookupError):  # what the tests started
            os.killpg(child, signal.SIGKILL)
        if late:
            return "timeout", ""
        code = os.waitstatus_to_exitcode(ended[1])
        return "survived" if code == 0 else "timeout" if code == -signal.SIGXCPU else "killed", killer.read_text()


# ---- the table ------------------------------------------------------------------------------------------------------


def summed(result: dict[str, Any]) -> dict[str, Any]:
    """The score, and its interval (Wilson's)."""
    from scipy.stats import binomtest

    counts = Counter(mutant["outcome"] for mutant in result["mutants"].values())
    caught, of = counts["killed"] + counts["timeout"], counts.total()
    interval = binomtest(caught, of).proportion_ci(0.95, method="wilson")
    return {"caught": caught, "of": of, "score": caught / of, "low": interval.low, "high": interval.high}


def report(result: dict[str, Any]) -> str:
    env, score, mutants = result["environment"], result["score"], result["mutants"].values()
    lines = [
        "# Mutation testing of scores, index, gradients and significance",
        "",
        f"The tests notice {score['caught']} of {score['of']} mutants, drawn evenly from {result['all']}: "
        f"{100 * score['score']:.1f} % (95 % interval {100 * score['low']:.1f} to {100 * score['high']:.1f} %). "
        "Mutants that change nothing that can be seen are among those that survive; none is taken out.",
        "",
        f"mutmut {result['mutmut']}, {env['threads']} thread, {env['processor']}, torch {env['torch']}, python "
        f"{env['python']}; {env['date']}; seed {result['seed']}. At most {result['seconds']:g} s of tests for each.",
        "",
        "| module | mutants | in the sample | killed | timeout | survived | no tests |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for module, count in result["by_module"].items():
        found = Counter(mutant["outcome"] for mutant in mutants if mutant["module"] == module)
        lines.append(f"| {module} | {count} | {found.total()} | {' | '.join(str(found[name]) for name in OUTCOMES)} |")
    found = Counter(mutant["outcome"] for mutant in mutants)
    lines.append(f"| all | {result['all']} | {found.total()} | {' | '.join(str(found[name]) for name in OUTCOMES)} |")
    if result["failing"]:
        lines += ["", f"Tests that fail without a mutant, and were left out: {', '.join(result['failing'])}."]
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20, help="of tests for each mutant, as they take without one")
    parser.add_argument("--mutants", nargs="+", help="only these; nothing is written")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="only these; nothing is written")
    asked = parser.parse_args()
    try:
        from importlib.metadata import version

        mutmut = version("mutmut")
    except ImportError:
        raise SystemExit("mutmut is not installed: pip install mutmut==3.8.1") from None
    work = asked.work.resolve()
    tree = work / "tree"
    copied(tree)
    shutil.rmtree(work / "tmp", ignore_errors=True)
    (work / "tmp").mkdir()
    os.chdir(tree)
    key = hashlib.blake2b(digest_size=8)
    for path in sorted(path for folder in ("src", "tests") for path in (tree / folder).rglob("*.*") if path.is_file()):
        key.update(path.read_bytes())
    key.update(" ".join(asked.tests).encode())
    everything = mutated(tree)
    names = asked.mutants or random.Random(asked.seed).sample(sorted(everything), asked.sample)
    os.environ |= {"PYTHONPATH": str(tree / "src"), "PYTEST_DEBUG_TEMPROOT": str(work / "tmp")}
    sys.path[:0] = [str(tree / "src")]
    trial = Trial(work, {name: everything[name] for name in names}, asked.seconds, key.hexdigest())
    code = pytest.main(["--rootdir=.", "-q", "-p", "no:cacheprovider", "-m", "not slow", *asked.tests], [trial])
    if code or not trial.found:
        raise SystemExit(f"pytest ended with {code}")
    result = {
        "command": f"python benchmarks/mutation.py --work DIR --sample {asked.sample} --seed {asked.seed}"
        + (f" --seconds {asked.seconds:g}" if asked.seconds != parser.get_default("seconds") else ""),
        "seed": asked.seed,
        "seconds": asked.seconds,
        "mutmut": mutmut,
        "environment": environment(1),
        "all": len(everything),
        "by_module": dict(Counter(mutant["module"] for mutant in everything.values())),
        "failing": trial.failing,
        "mutants": trial.found,
    }
    result["score"] = summed(result)
    result["mutants"] = {
        name: mutant if mutant["outcome"] == "survived" else {key: mutant[key] for key in mutant if key != "change"}
        for name, mutant in trial.found.items()
    }
    partial = asked.mutants or asked.tests != list(TESTS)
    folder = work if partial else RESULTS
    (folder / "mutation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (folder / "mutation.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()

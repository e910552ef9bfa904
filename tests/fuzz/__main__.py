"""Compiles random models for all targets and reports what is refused and what fails: `make fuzz`."""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

import qcompiler
from tests.fuzz.draw import draw_case, draw_program
from tests.fuzz.oracle import FAILURES, Outcome, Verdict, judge
from tests.fuzz.programs import Case
from tests.fuzz.shrink import shrink

Row = dict[str, object]

SHRINK_SECONDS = 60.0
"""Time for making one failing model small."""


def deployable() -> list[str]:
    """The targets that are hardware."""
    return [name for name in qcompiler.targets() if qcompiler.load_target(name).simulation is None]


def read(path: Path) -> dict[tuple[int, str], Row]:
    """Finished pairs of a file of JSON lines; of each the last."""
    if not path.exists():
        return {}
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return {(row["seed"], row["target"]): row for row in rows}


def row_of(case: Case, verdict: Verdict) -> Row:
    """The saved result of one pair."""
    return {
        "seed": case.program.seed,
        "target": case.target,
        "case": case.digest,
        "outcome": str(verdict.outcome),
        "error": verdict.error,
        "message": verdict.message,
        "kind": verdict.kind,
        "seconds": round(verdict.seconds, 3),
    }


def summary(rows: Iterable[Mapping[str, object]]) -> str:
    """Counts by target and outcome, then refusals and failures by kind."""
    rows = list(rows)
    columns = [str(item) for item in Outcome]
    lines = [f"{'target':22}{'pairs':>7}" + "".join(f"{name:>13}" for name in columns)]
    for target in [*sorted({str(row["target"]) for row in rows}), "all"]:
        mine = [row for row in rows if target in (row["target"], "all")]
        counts = collections.Counter(str(row["outcome"]) for row in mine)
        lines.append(f"{target:22}{len(mine):7}" + "".join(f"{counts[name]:13}" for name in columns))
    kinds = collections.Counter((str(row["outcome"]), str(row["kind"])) for row in rows if row["outcome"] != Outcome.OK)
    for outcome in columns[1:]:
        for (name, kind), count in kinds.most_common():
            if name == outcome:
                lines.append(f"{count:5} {name}: {kind}")
    return "\n".join(lines)


def show(case: Case, verdict: Verdict, found: Case) -> str:
    """A failure as text, with the smallest model and the command that repeats it."""
    again = f"make fuzz FUZZ='--seeds {case.program.seed} --targets {case.target} --again'"
    head = f"# {verdict.outcome}: {verdict.kind}\n# {verdict.message}\n# again: {again}\n"
    return head + found.source()


def main(arguments: list[str]) -> int:
    """Run the pairs that are not finished, and report all of them.

    Returns:
        1 where something failed.
    """
    parser = argparse.ArgumentParser(prog="make fuzz FUZZ=...", description=__doc__)
    parser.add_argument("--seeds", default="0:50", help="one seed, or FIRST:END")
    parser.add_argument("--minutes", type=float, default=10.0, help="time after which no new pair is begun")
    parser.add_argument(
        "--targets", default="", help="names with commas between them; all pieces of hardware if absent"
    )
    parser.add_argument("--output", type=Path, default=Path("out/fuzz"), help="folder of the results")
    parser.add_argument("--again", action="store_true", help="run finished pairs again")
    parser.add_argument("--failed", action="store_true", help="run finished pairs again that failed")
    parser.add_argument("--no-shrink", action="store_true", help="print failing models as they were drawn")
    options = parser.parse_args(arguments)
    first, colon, end = options.seeds.partition(":")
    seeds = range(int(first), int(end) if colon else int(first) + 1)
    targets = options.targets.split(",") if options.targets else deployable()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path: Path = options.output / "results.jsonl"
    done = read(path)
    reported = {str(row["kind"]) for row in done.values() if row["outcome"] in FAILURES and not options.failed}
    until = time.monotonic() + 60 * options.minutes
    rows: list[Row] = []
    with path.open("a", encoding="utf-8") as file:
        for seed in seeds:
            program = None
            for target in targets:
                program = program or draw_program(seed)
                case = draw_case(program, target)
                row = done.get((seed, target))
                skipped = row is not None and row["case"] == case.digest and not options.again
                if skipped and row is not None and not (options.failed and row["outcome"] in FAILURES):
                    rows.append(row)
                    continue
                if time.monotonic() > until:
                    continue
                verdict = judge(case)
                rows.append(row_of(case, verdict))
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
                if verdict.outcome in FAILURES and (verdict.kind not in reported or options.again):
                    reported.add(verdict.kind)
                    found = case if options.no_shrink else shrink(case, verdict, SHRINK_SECONDS)
                    text = show(case, verdict, found)
                    (options.output / f"failure_{seed}_{target}.py").write_text(text, encoding="utf-8")
                    print(f"\n{text}", flush=True)  # noqa: T201  # it is a program
    print(summary(rows))  # noqa: T201  # as above
    return int(any(row["outcome"] in FAILURES for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

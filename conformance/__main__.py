"""`python -m conformance`: every line, or those that are named, and whether what is required was compared and equal.

Exit code: 0 when no line failed and every required line passed; 1 otherwise; 2 for a usage error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conformance.lines import Line
from conformance.runner import judge, read_required, run_lines, select, write_json

REQUIRED = Path(__file__).with_name("required.toml")


def all_lines() -> list[Line]:
    """Every line there is, in the order of their output."""
    from conformance import (
        c_networks,
        litert_operators,
        multipliers,
        node_tests,
        requantization,
        runtime_networks,
        softmax,
        tflite_networks,
    )

    modules = (
        requantization,
        multipliers,
        node_tests,
        litert_operators,
        runtime_networks,
        softmax,
        tflite_networks,
        c_networks,
    )
    return [line for module in modules for line in module.lines()]


def main(arguments: list[str] | None = None) -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument("names", nargs="*", help="lines, or patterns such as 'c/*/host'; all when none is given")
    parser.add_argument("--list", action="store_true", help="name the lines instead of running them")
    parser.add_argument("--allow-missing", action="store_true", help="a required line may be skipped")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes to a file")
    options = parser.parse_args(arguments)
    lines = all_lines()
    required = read_required(REQUIRED)
    chosen = select(lines, options.names)
    if options.names and not chosen:
        parser.error(f"no line is called {' or '.join(options.names)}: --list names them")
    if options.list:
        for line in chosen:
            sys.stdout.write(f"{line.name}{' (required)' if line.name in required else ''}\n")
        return 0
    if options.names:  # only the lines that are named are required
        required = [name for name in required if any(line.name == name for line in chosen)]
    outcomes = []
    for outcome in run_lines(chosen):
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()
        outcomes.append(outcome)
    verdict = judge(outcomes, required, allow_missing=options.allow_missing)
    sys.stdout.write(f"{verdict}\n")
    if options.json is not None:
        write_json(options.json, outcomes, verdict)
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())

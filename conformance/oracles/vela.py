"""Runs in the environment of `ethos-u-vela`: its fixed point functions, one value at a time.

    python vela.py FOLDER

`FOLDER/request.json` holds `{"function": ..., "arguments": [...]}`, where the arguments name arrays of
`FOLDER/request.npz`; the results, one array for each number that the function returns, go to `FOLDER/answer.npz` as
`0`, `1`, ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ethosu.vela import fp_math, scaling

FUNCTIONS = {
    "multiply_by_quantized_multiplier": fp_math.multiply_by_quantized_multiplier,
    "rounding_divide_by_pot": fp_math.rounding_divide_by_pot,
    "quantise_scale": scaling.quantise_scale,
    "reduced_quantise_scale": scaling.reduced_quantise_scale,
}


def main() -> None:
    """Answer one request."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with np.load(folder / "request.npz") as file:
        columns = [file[name].tolist() for name in request["arguments"]]
    function = FUNCTIONS[request["function"]]
    found = [function(*values) for values in zip(*columns, strict=True)]
    rows = [value if isinstance(value, tuple) else (value,) for value in found]
    results = zip(*rows, strict=True)
    answers: dict[str, Any] = {str(i): np.array(column, np.int64) for i, column in enumerate(results)}
    np.savez(folder / "answer.npz", **answers)


if __name__ == "__main__":
    main()

"""Runs in the environment of `tosa-tools`: one operator of the TOSA reference model on constants.

    python tosa.py FOLDER

`FOLDER/request.json` holds

    operator    RESCALE, ARITHMETIC_RIGHT_SHIFT, INTDIV, ...
    attribute   method of `TosaSerializerAttribute` and its arguments; a text names a RoundingMode
    inputs      for each input its type ("INT32"), its shape, and the name of an array of `FOLDER/request.npz`
    output      type and shape of the result, which goes to the array `0` of `FOLDER/answer.npz`

All inputs are constants of the graph: 48-bit integers can be given in no other way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tosa_reference_model
import tosa_serializer as tosa


def main() -> None:
    """Answer one request."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    graph = tosa.TosaSerializer("")
    names = []
    with np.load(folder / "request.npz") as file:
        for index, item in enumerate(request["inputs"]):
            names.append(f"input{index}")
            values = file[item["data"]].reshape(-1).tolist()
            graph.addConst(item["shape"], getattr(tosa.DType, item["type"]), values, names[-1])
    output = graph.addOutput(request["output"]["shape"], getattr(tosa.DType, request["output"]["type"]))
    attribute = tosa.TosaSerializerAttribute()
    arguments = [
        getattr(tosa.RoundingMode, item) if isinstance(item, str) else item
        for item in request["attribute"]["arguments"]
    ]
    getattr(attribute, request["attribute"]["name"])(*arguments)
    graph.addOperator(getattr(tosa.Op, request["operator"]), inputs=names, outputs=[output.name], attributes=attribute)
    results, status = tosa_reference_model.run(graph.serialize(), [])
    if status != tosa_reference_model.GraphStatus.TOSA_VALID:
        raise SystemExit(f"the TOSA reference model answers {status.name}")
    np.savez(folder / "answer.npz", **{"0": results[0].reshape(request["output"]["shape"])})


if __name__ == "__main__":
    main()

"""Diagnostics are records; the sentence is made when one is printed."""

from __future__ import annotations

import json
import math

import pytest

from qcompiler.ir.diagnostics import Diagnostic, decibels, note

FORMS = {
    "target": "int8_dsp",
    "reference": "exact simulation",
    "samples": 4,
    "agreeing": 6,
    "differing": [],
    "not_run": {"C": "no compiler"},
}


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (note("The batch size is fixed."), "The batch size is fixed."),
        (
            Diagnostic("forms", FORMS),
            "int8_dsp: 6 comparisons of forms agree with the exact simulation on 4 samples. Not run: C (no compiler).",
        ),
        (
            Diagnostic("forms", {**FORMS, "differing": ["ONNX"], "not_run": {}}),
            "int8_dsp: ONNX differ from the exact simulation on 4 samples.",
        ),
        (Diagnostic("forms", {"target": "int8_dsp", "samples": 0}), "int8_dsp: not verified."),
        (
            Diagnostic("outputs", {"db": {f"o{index}": float(20 + index) for index in range(6)}}),
            "Signal to noise of the outputs against the float model: o0 20.0 dB, o1 21.0 dB, o2 22.0 dB, o3 23.0 dB and 2 more.",
        ),
        (
            Diagnostic("outputs", {"db": {"output 0": None, "output 1": 31.0}}),
            "Signal to noise of the outputs against the float model: output 1 31.0 dB, output 0 exact.",
        ),
        (Diagnostic("losses", {"losses": []}), "No tensor loses anything by itself."),
        (Diagnostic("no-memory-plan"), "No memory plan: the model has no single image input."),
        (
            Diagnostic("encodings-set", {"given": 3, "calibrated": 1}),
            "Encodings set 3 tensors; 1 quantizers are calibrated.",
        ),
        (Diagnostic("encodings-ignored", {"names": "'a'"}), "Encodings that match no tensor are ignored: 'a'."),
        (
            Diagnostic("float-islands", {"names": ["a"], "macs": 0.5, "elements": 0.25}),
            "One float island has 50.00 % of the multiply-accumulates and 25.00 % of the elements: @a.",
        ),
        (
            Diagnostic("float-islands", {"names": list("abcde"), "macs": 0.0, "elements": 1.0}),
            "5 float islands have 0.00 % of the multiply-accumulates and 100.00 % of the elements: @a, @b, @c, @d, ....",
        ),
        *[
            (
                Diagnostic(
                    "lowest-weights", {"quantizer": "w", "count": count, "code": -8, "target": "t", "first": -7}
                ),
                text,
            )
            for count, text in (
                (1, "%w: 1 weight is on code -8 of the encoding; t begins at -7."),
                (2, "%w: 2 weights are on code -8 of the encoding; t begins at -7."),
            )
        ],
        *[
            (
                Diagnostic(
                    "constant-channels",
                    {
                        "output": "output 0",
                        "axis": 1,
                        "places": places,
                        "size": 9,
                        "low": 0.1,
                        "high": 0.9,
                        "fix": "Try.",
                    },
                ),
                f"Output 0: {text} constant for all samples, while the float model gives 0.1 to 0.9. Try.",
            )
            for places, text in (
                ([4], "index 4 of 9 along axis 1 is"),
                ([0, 4, 5, 6, 8], "indices 0, 4 to 6, 8 of 9 along axis 1 are"),
            )
        ],
        (
            Diagnostic("normalization-stays", {"node": "sub", "reason": "it has less noise"}, "m.py:3"),
            "The normalization of an input at m.py:3 is computed by itself: it has less noise.",
        ),
        (
            Diagnostic("second-capture", {"route": "export", "refused": "no operator"}, "x (m.py:1)"),
            "Captured with torch.export because torch.fx failed: no operator, at x (m.py:1).",
        ),
        (
            Diagnostic("second-capture", {"route": "given", "refused": "no operator"}),
            "Captured with another graph because the first failed: no operator.",
        ),
        (
            Diagnostic("fixed-batch", {"size": 3, "reason": "a view"}),
            "The batch size is fixed to 3: the model does not run at other batch sizes (a view).",
        ),
        (
            Diagnostic("omitted-writes", {"names": ["a", "b"]}),
            "The forward writes to 'a', 'b'; no result depends on the writes, so they are omitted.",
        ),
        (
            Diagnostic("host-steps", {"before": [], "after": ["decoding"]}, "ssd:SSD"),
            "Host: decoding after the network. Your program computes these steps in float, with the code of ssd:SSD.",
        ),
        (
            Diagnostic("other-types", {"types": ["float16", "float64"]}),
            "The model computes in float16 and float64; it is compiled in float32, and inputs and outputs keep their types.",
        ),
        (
            Diagnostic("wrapper-removed", {"wrapper": "DataParallel", "model": "Linear"}),
            "DataParallel is removed: the wrapped model, a Linear, is compiled.",
        ),
        (
            Diagnostic("batch-bounds", {"low": 2, "high": 9}),
            "The graph is valid for batch sizes from 2 to 9, as the model is.",
        ),
        (
            Diagnostic("constant-parameters", {"function": "cumsum"}, "a (m.py:2)"),
            "cumsum of parameters became a constant (at a (m.py:2)); training the graph does not change it.",
        ),
        (Diagnostic("of-tomorrow", {"tensor": "x"}), "of-tomorrow: tensor x."),
    ],
)
def test_a_sentence_is_made_from_code_and_data(item: Diagnostic, sentence: str) -> None:
    assert str(item) == sentence
    plain = json.loads(json.dumps(item.plain(), allow_nan=False))
    assert Diagnostic(**plain) == item
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in item.data.items()
    }
    assert str(Diagnostic(item.code, turned, item.where)) == sentence, "a file does not keep the order of keys"


def test_ratios_are_numbers_that_json_has() -> None:
    assert [decibels(ratio) for ratio in (math.inf, -math.inf, math.nan, 12.345)] == [None, -99.0, None, 12.35]

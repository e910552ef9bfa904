"""The protocol of back ends: bounds, the paths of forms, and who is named when a plugin fails."""

from __future__ import annotations

import pytest

from qcompiler.artifact.layout import check_paths
from qcompiler.backends.base import Backend, Bound, Emitted, Files, Lowered, blaming
from qcompiler.backends.onnx_qdq.form import Onnx
from qcompiler.errors import InputError, PluginError
from qcompiler.targets import Target


class Stranger(Backend):
    """A back end of another distribution."""

    name = "stranger"

    def emit(self, model: Lowered, target: Target) -> Files:
        return {}

    def run(self, files: Files, inputs: object) -> list[object]:  # type: ignore[override]
        return []


@pytest.mark.parametrize(
    ("bound", "count", "size", "distance", "allowed"),
    [
        (Bound(), 0, 100, 0, True),
        (Bound(), 1, 100, 1, False),
        (Bound(1, 0.01), 1, 10, 1, True),
        (Bound(1, 0.01), 1, 10, 2, False),
        (Bound(1, 0.01), 5, 10, 1, False),
        (Bound(2, 1.0), 100, 100, 2, True),
    ],
)
def test_a_bound_limits_distance_and_share(bound: Bound, count: int, size: int, distance: int, allowed: bool) -> None:
    assert bound.allows(count, size, distance) is allowed


def test_an_error_of_a_plugin_names_it() -> None:
    with (
        pytest.raises(PluginError, match=r"the back end 'stranger' fails: KeyError: 'x' \(at tests\."),
        blaming(Stranger()),
    ):
        raise KeyError("x")
    with pytest.raises(InputError), blaming(Stranger()):
        raise InputError("it does not fit")
    with pytest.raises(KeyError), blaming(Onnx()):  # ours: a defect
        raise KeyError("x")


@pytest.mark.parametrize("path", ["manifest.json", "report.html", "../x", "/etc/x", "a/b/c", "", ".hidden", "c/../x"])
def test_a_path_that_is_taken_or_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(PluginError, match="the back end 'stranger' writes"):
        check_paths({"stranger": Emitted({path: b""})})


def test_two_forms_have_no_file_in_common() -> None:
    with pytest.raises(PluginError, match="a file of one"):
        check_paths({"one": Emitted({"x/y": b""}), "two": Emitted({"x/y": b""})})
    check_paths({"one": Emitted({"x/y": b""}), "two": Emitted({"x/z": b""}), "three": Emitted(reason="it has no form")})

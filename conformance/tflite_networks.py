"""The TensorFlow Lite files of whole networks in LiteRT's reference kernels: every element of every output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from conformance.lines import Line, Tally
from conformance.networks import Network, compiled, digits, without_shortcuts

__all__ = ["TARGET", "lines"]

TARGET = "tflite_int8"
NETWORKS: dict[str, Callable[[], Network]] = {
    **{name: partial(without_shortcuts, name) for name in ("mobilenet", "mobilenet_hard", "resnet", "efficientnet")},
    "digits": digits,
}


def check(make: Callable[[], Network]) -> Tally:
    """The file against the exact simulation."""
    found, network = compiled(make, TARGET)
    form = found.verify(network.images).form("TFLite")
    tally = Tally()
    tally.compared, tally.mismatches = form.elements, form.differing
    if form.differing or not form.elements:
        tally.notes.append(str(form))
    return tally


def lines() -> list[Line]:
    """One line for each network."""
    return [Line(f"tflite/{name}", partial(check, make)) for name, make in NETWORKS.items()]

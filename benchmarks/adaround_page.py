"""What `benchmarks.adaround` found, as a section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
SIDES = ("without", "with")

ABOUT = """## Adaptive rounding

Made by `python -m benchmarks.adaround`: rounding by second moments (`gram`) against the descent of the paper (`sgd`).
Both get the same weights of four bits with a scale per channel, the same calibration images, and what the layer reads
when all layers before it are rounded. MobileNetV2 and ResNet-18 have the shapes of torchvision and were trained for a
little while on rendered pictures of 64x64 pixels. The error is that on images that neither has seen, without and with
the activation behind the layer, over that of rounding to nearest; the quotient of both is given with its 95 %
confidence interval. One thread."""


def section(rows: Sequence[Json], everything: Sequence[Json], peer: Json, *, images: int) -> str:
    """Named layers, all layers, and the other toolkit.

    Args:
        rows: Of the named layers.
        everything: Of all layers.
        peer: Of the other toolkit: `ours` and `theirs`, or `skipped`.
        images: How many were not seen.
    """
    parts = [ABOUT, f"{images} unseen images, {rows[0]['steps']:,} steps for `sgd`:", _layers(rows)]
    if everything:
        parts += [f"All layers, {everything[0]['steps']:,} steps for `sgd`:", _sums(everything)]
    parts.append(_peer(peer))
    return "\n\n".join(parts)


def _layers(rows: Sequence[Json]) -> str:
    heads = ["network", "layer", "weight"]
    for side in SIDES:
        heads += [f"{side}: gram", "sgd", "gram / sgd"]
    lines = [_line([*heads, "gram, s", "sgd, s"]), "|---|---|---|" + "---:|" * 8]
    for row in rows:
        cells = [row["network"], f"`{row['layer']}`", "x".join(map(str, row["shape"]))]
        for index in range(2):
            quotient, half = row["gram over sgd"][index]
            cells += [f"{row[key][index]:.3f}" for key in ("gram over nearest", "sgd over nearest")]
            cells.append(f"{quotient:.3f} ± {half:.3f}")
        lines.append(_line([*cells, *(f"{value:.2f}" for value in row["seconds"])]))
    return "\n".join(lines)


def _sums(rows: Sequence[Json]) -> str:
    heads = ["network", "layers"]
    for side in SIDES:
        heads += [f"gram / sgd {side}: mean", "largest", "above 1"]
    lines = [_line([*heads, "gram, s", "sgd, s"]), "|---|" + "---:|" * 9]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        cells = [name, str(len(own))]
        for index in range(2):
            quotients = [row["gram over sgd"][index] for row in own]
            values = [quotient for quotient, _ in quotients]
            # Above by more than the images that were drawn explain.
            above = sum(quotient - half > 1.0 for quotient, half in quotients)
            cells += [f"{sum(values) / len(values):.3f}", f"{max(values):.3f}", str(above)]
        lines.append(_line([*cells, *(f"{sum(row['seconds'][index] for row in own):.1f}" for index in range(2))]))
    return "\n".join(lines)


def _peer(peer: Json) -> str:
    if "skipped" in peer:
        return f"`aimet-torch` was not measured: {peer['skipped']}."
    ours, theirs = peer["ours"], peer["theirs"]
    return (
        f"All layers of `mobilenet` (`benchmarks/networks.py`), {peer['images']} images, weights of four bits with a "
        f"scale per channel, float activations; accuracy on the test split: float {ours['float']:.2%}, "
        f"here {ours['accuracy']:.2%} in {ours['seconds']:.1f} s, `aimet-torch` {theirs['version']} with its "
        f"defaults {theirs['accuracy']:.2%} in {theirs['seconds']:.0f} s, "
        f"{theirs['seconds'] / ours['seconds']:.0f} times as long."
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

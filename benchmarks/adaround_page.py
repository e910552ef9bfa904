"""The results of `benchmarks.adaround`, as a section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.ptq_page import figure

Json = dict[str, Any]
SIDES = ("without", "with")

ABOUT = """## Adaptive rounding

Made by `python -m benchmarks.adaround`: rounding by second moments (`gram`) against the descent of the paper (`sgd`).
Both get the same weights of four bits with a scale per channel, the same calibration images, and what the layer reads
when all layers before it are rounded. MobileNetV2 and ResNet-18 have the shapes of torchvision and were trained for a
little while on rendered pictures of 64x64 pixels. The error is that on images that neither has seen, without and with
the activation behind the layer, over that of rounding to nearest; the quotient of both is given with its 95 %
confidence interval. One thread; seconds are of one run, on a machine that had other work too."""


def section(rows: Sequence[Json], everything: Sequence[Json], peer: Json, *, images: int) -> str:
    """Named layers, all layers, and the other toolkit.

    Args:
        rows: Results of the named layers.
        everything: Results of all layers.
        peer: Results of the other toolkit: `draws` with `ours` and `theirs` each, or `skipped`.
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
    draws = peer["draws"]
    lines = [_line(["images", "float", "here", "`aimet-torch`", "here, s", "`aimet-torch`, s", "times as long"])]
    lines.append("|---|" + "---:|" * 6)
    for number, draw in enumerate(draws):
        own, other = draw["ours"], draw["theirs"]
        cells = [f"draw {number}", *(f"{value:.2%}" for value in (own["float"], own["accuracy"], other["accuracy"]))]
        cells += [f"{own['seconds']:.1f}", f"{other['seconds']:.0f}", f"{other['seconds'] / own['seconds']:.0f}"]
        lines.append(_line(cells))
    gain = figure([draw["ours"]["accuracy"] - draw["theirs"]["accuracy"] for draw in draws])
    text = (
        f"Beside `aimet-torch` {draws[0]['theirs']['version']} with its defaults: all layers of `mobilenet` "
        f"(`benchmarks/networks.py`), {peer['images']} images, weights of four bits with a scale per channel, float "
        f"activations, accuracy on the test split. Here it is higher by {gain} points, mean and 95 % confidence "
        "interval."
    )
    return "\n".join([text, "", *lines])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

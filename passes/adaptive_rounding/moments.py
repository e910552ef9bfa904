"""Adaptive rounding of one layer from the second moments of its inputs, which reads each image once.

For rows of up to `LARGEST` weights, G = E[x^ x^T] is kept. Longer rows (VGG's first linear layer has 25,088 weights)
are rounded block by block with the moments of the columns of the block; the accumulated error of all previous columns
is kept per sample:

    r = W x^ - W x                       before the first block, [samples, rows]
    r = r + (s q_B - w_B) x^_B           after block B;    the next block starts from c_B = E[r x^_B]

Rows are distributed over processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompiler.calibration.processes import Processes
from qcompiler.ir.graph import Node
from qcompiler.passes.adaptive_rounding.activation import Following, refine, samples_for
from qcompiler.passes.common.patches import patches, positions
from qcompiler.passes.common.two_models import LayerInputs
from qcompiler.quant.rounding_search import Moments, round_to_data, rounding_error

LARGEST = 6144
"""Largest number of weights of a row with a single matrix of moments: 300 MB in float64."""

COLUMNS = 1024
"""Number of weights per block of a longer row."""

SAMPLES = 4096
"""Maximum number of samples of a layer with longer rows; the samples of both models are kept in memory."""

ROWS = 256
"""Number of rows that one process rounds at a time; constant, because it can change the last bit of results."""

Round = Callable[[Tensor, Tensor, Moments, Tensor], Tensor]


@dataclass(frozen=True)
class Rounded:
    """The result of rounding a layer.

    Args:
        codes: float32 [groups, R, K].
        shift: Correction to add to the bias, float64 [groups, R]: the lost mean; zeros if no correction is requested.
        error: Squared error relative to rounding to nearest, both without the activation and before its refinement.
    """

    codes: Tensor
    shift: Tensor
    error: float


@dataclass(frozen=True)
class Samples:
    """Patches of a layer at some positions of each batch.

    Args:
        node: The layer.
        inputs: Inputs of the layer in both models.
        positions: Maximum number of positions over all batches.
        seed: Seed for the choice of positions.
    """

    node: Node
    inputs: LayerInputs
    positions: int
    seed: int

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        """float32 [groups, S, K] of batch `index` in both models; the same object if both are equal."""
        pair = self.inputs.batch(index)
        count = positions(self.node, pair.real)
        quota = max(1, self.positions // self.inputs.count)
        chosen = torch.arange(count)
        if count > quota:
            text = f"{self.seed} {self.node.name} {index}".encode()
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))
            chosen = torch.randperm(count, generator=generator)[:quota].sort().values
        real = patches(self.node, pair.real, chosen).to(torch.float32)
        same = pair.quantized is pair.real
        return real, real if same else patches(self.node, pair.quantized, chosen).to(torch.float32)


def round_layer(
    samples: Samples, rows: Tensor, scale: Tensor, limits: tuple[int, int], following: Following
) -> Rounded:
    """Round a layer.

    Args:
        samples: Inputs of the layer.
        rows: Weights of the layer, float32 [groups, R, K].
        scale: Step of each weight, float32 [groups, R, 1] or [groups, R, K].
        limits: Lowest and highest code.
        following: Activation and bias of the layer; the bias absorbs the mean error, so only deviations from it count.
    """
    processes, count = samples.inputs.processes, samples.inputs.count

    def sums(index: int) -> list[Tensor]:
        real, quantized = samples(index)
        size = torch.tensor(real.shape[1], dtype=torch.float64)
        return [size, *(part.sum(1, keepdim=True, dtype=torch.float64) for part in (real, quantized))]

    size, *totals = processes.sum(count, sums)
    means = [total / size if following.has_bias else torch.zeros_like(total) for total in totals]
    centres = [mean.to(torch.float32) for mean in means]

    def centred(index: int) -> tuple[Tensor, Tensor]:
        real, quantized = samples(index)
        return real - centres[0], quantized - centres[1]

    nearest = ((rows / scale) + 0.5).floor_().clamp_(*limits)
    solve = _by_moments if rows.shape[2] <= LARGEST else _by_blocks
    codes, errors = solve(processes, count, centred, float(size), rows, scale, limits, nearest)
    shift = (rows.double() @ means[0].transpose(1, 2) - (codes * scale).double() @ means[1].transpose(1, 2)).squeeze(2)
    if not following.has_bias:
        shift = torch.zeros_like(shift)
    if following.function is not None and (most := samples_for(rows, int(size))):
        few = replace(samples, positions=min(most, samples.positions))
        codes, shift = refine(processes, count, few, following, rows, scale, limits, codes, shift)
    return Rounded(codes, shift, float(errors[0] / errors[1]) if float(errors[1]) > 0 else 1.0)


def _by_moments(
    processes: Processes,
    count: int,
    centred: Callable[[int], tuple[Tensor, Tensor]],
    size: float,
    rows: Tensor,
    scale: Tensor,
    limits: tuple[int, int],
    nearest: Tensor,
) -> tuple[Tensor, Tensor]:
    def products(index: int) -> list[Tensor]:
        real, quantized = centred(index)
        drift = (quantized - real) @ rows.transpose(1, 2)  # [groups, S, R]
        parts = (quantized.transpose(1, 2) @ quantized, drift.transpose(1, 2) @ quantized, drift.square().sum())
        quartic = quantized.square().sum(2, dtype=torch.float64).square().sum(1)
        return [*(part.to(torch.float64) for part in parts), quartic]

    gram, drift, before, quartic = (total / size for total in processes.sum(count, products))
    gram = shrunk(gram, quartic, size)
    moments, drift = Moments.of(gram), drift.to(torch.float32)
    codes = _shared(processes, moments, rows, scale, drift, limits)
    gained = (rounding_error(q, rows, scale, moments.gram, drift).sum(dtype=torch.float64) for q in (codes, nearest))
    return codes, torch.stack([before + part for part in gained])


def shrunk(gram: Tensor, quartic: Tensor, samples: float) -> Tensor:
    """Shrink second moments of few samples towards their diagonal, which is closer to the moments of the population.

        (1 - r) G + r diag(G)        r = (E |x|^4 - |G|^2) / samples / |G - diag(G)|^2, within 0..1

    Args:
        gram: G, means over the samples, float64 [groups, K, K].
        quartic: E |x|^4, [groups].
        samples: Number of samples.

    Source: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", section 3,
    with the diagonal in place of a multiple of the identity.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    whole = gram.square().sum((1, 2))
    noise = (quartic - whole).clamp(min=0.0) / samples
    share = (noise / (whole - diagonal.square().sum(1)).clamp(min=1e-300)).clamp(max=1.0).reshape(-1, 1, 1)
    return (1.0 - share) * gram + torch.diag_embed(share.squeeze(2) * diagonal)


def _shared(
    processes: Processes, moments: Moments, rows: Tensor, scale: Tensor, drift: Tensor, limits: tuple[int, int]
) -> Tensor:
    """Codes of all rows. Each process rounds its share: some rows of a group, or some groups."""
    groups = max(1, ROWS // rows.shape[1])
    pieces = [
        (slice(group, group + groups), slice(row, row + ROWS))
        for group in range(0, rows.shape[0], groups)
        for row in range(0, rows.shape[1], ROWS)
    ]
    own = {
        index: round_to_data(rows[piece], scale[piece], *limits, moments[piece[0]], drift[piece])
        for index, piece in enumerate(pieces)
        if processes.owns(index)
    }
    codes = torch.empty_like(rows)
    for part in processes.gather(own):
        for index, found in part.items():
            codes[pieces[index]] = found
    return codes


def _by_blocks(
    processes: Processes,
    count: int,
    centred: Callable[[int], tuple[Tensor, Tensor]],
    size: float,
    rows: Tensor,
    scale: Tensor,
    limits: tuple[int, int],
    nearest: Tensor,
) -> tuple[Tensor, Tensor]:
    inputs: dict[int, Tensor] = {}
    residual: dict[int, Tensor] = {}
    for index in range(count):
        if processes.owns(index):
            real, quantized = centred(index)
            inputs[index] = quantized
            residual[index] = (quantized - real) @ rows.transpose(1, 2)

    def error(codes: Tensor | None) -> Tensor:
        """The products of block inputs with the residual, or with the residual after a change of codes."""
        moved = None if codes is None else codes * scale - rows

        def part(index: int) -> list[Tensor]:
            lost = residual[index] if moved is None else residual[index] + inputs[index] @ moved.transpose(1, 2)
            return [lost.square().sum(dtype=torch.float64)]

        return processes.sum(count, part)[0] / size

    errors = [error(nearest)]
    codes = torch.empty_like(rows)
    # Round a block of columns for the residual that earlier blocks and the quantized inputs leave, then update it.
    for begin in range(0, rows.shape[2], COLUMNS):
        block = slice(begin, begin + COLUMNS)

        def products(index: int, block: slice = block) -> list[Tensor]:
            x = inputs[index][:, :, block]
            quartic = x.square().sum(2, dtype=torch.float64).square().sum(1)
            return [*((part.transpose(1, 2) @ x).to(torch.float64) for part in (x, residual[index])), quartic]

        gram, drift, quartic = (total / size for total in processes.sum(count, products))
        gram = shrunk(gram, quartic, size)
        steps = scale.expand_as(rows)[:, :, block]
        found = _shared(processes, Moments.of(gram), rows[:, :, block], steps, drift.to(torch.float32), limits)
        codes[:, :, block] = found
        moved = (found * steps - rows[:, :, block]).transpose(1, 2)
        for index, x in inputs.items():
            residual[index] += x[:, :, block] @ moved
    return codes, torch.stack([error(None), *errors])

"""Pure quantization numerics: grids, rounding, affine maps and integer requantization. Imports nothing of ours."""

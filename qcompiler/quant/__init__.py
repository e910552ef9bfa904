"""Pure quantization numerics: grids, rounding, affine maps, integer requantization. Imports no other room."""

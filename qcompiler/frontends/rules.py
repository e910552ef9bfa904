"""All rules of torch's functions: importing this module fills the table."""

from qcompiler.frontends import (
    rules_attention,
    rules_elementwise,
    rules_exact,
    rules_indexing,
    rules_movement,
    rules_normalization,
    rules_places,
    rules_pooling,
    rules_products,
    rules_recurrent,
    rules_reductions,
    rules_windows,
)
from qcompiler.frontends.table import RULES

__all__ = [
    "RULES",
    "rules_attention",
    "rules_elementwise",
    "rules_exact",
    "rules_indexing",
    "rules_movement",
    "rules_normalization",
    "rules_places",
    "rules_pooling",
    "rules_products",
    "rules_recurrent",
    "rules_reductions",
    "rules_windows",
]

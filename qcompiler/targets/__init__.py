"""Hardware descriptors: schema, loader and the descriptors that ship with the compiler."""

from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.loader import load_target, targets
from qcompiler.targets.target import Target

__all__ = ["Descriptor", "Target", "load_target", "targets"]

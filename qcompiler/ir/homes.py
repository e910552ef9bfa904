"""Places of a graph's tensors in a torch module: under their own names, as a state_dict requires."""

from __future__ import annotations

from collections.abc import Container

from torch import nn


def home_of(root: nn.Module, name: str, taken: Container[str]) -> tuple[nn.Module, str]:
    """The module that holds the tensor called `name`, created if missing, and the attribute name there.

    `conv.weight` and `conv.weight.q.scale` cannot both exist: a path through a tensor gets an underscore, and so does a
    part that torch or the class of the outermost module itself uses, such as `forward`.

    Args:
        root: The outermost module.
        name: Parts separated by dots.
        taken: Names of all tensors.
    """
    *path, leaf = name.split(".")
    home = root
    for length, part in enumerate(path, start=1):
        part = f"{part}_" if ".".join(path[:length]) in taken or _is_used(home, root, part) else part
        if part not in dict(home.named_children()):
            home.add_module(part, nn.Module())
        home = home.get_submodule(part)
    return home, f"{leaf}_" if _is_used(home, root, leaf) else leaf


def _is_used(home: nn.Module, root: nn.Module, part: str) -> bool:
    """Whether `part` is a name of torch's own, or an attribute that the class of the outermost module declares."""
    if hasattr(nn.Module, part):
        return True
    return home is root and any(part in vars(kind) or part in kind.__annotations__ for kind in type(root).__mro__[:-1])

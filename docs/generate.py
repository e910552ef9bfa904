"""Write what of the reference follows from the code: `python docs/generate.py`. A test tells when to run it."""

from __future__ import annotations

import json
from pathlib import Path

from qcompiler.targets.schema import Descriptor

REFERENCE = Path(__file__).with_name("reference")


def pages() -> dict[str, str]:
    """Content by name of file."""
    return {
        "target.schema.json": json.dumps(Descriptor.model_json_schema(by_alias=True), indent=1, sort_keys=True) + "\n"
    }


def main() -> None:
    """Write what differs."""
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()

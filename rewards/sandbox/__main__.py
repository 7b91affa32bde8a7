"""Which walls this machine gives to programs: `python -m rewards.sandbox`."""

from __future__ import annotations

import sys

from rewards.sandbox.box import SandboxError, SandboxRefused, layers
from rewards.sandbox.layers import refusal, table


def main() -> int:
    try:
        found = layers()
    except (SandboxRefused, SandboxError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found))
    wrong = refusal(found, ())
    if wrong:
        print(f"\n{wrong}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

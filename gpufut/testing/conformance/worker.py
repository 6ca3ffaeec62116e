"""The process that asks checks: ``python -m gpufut.testing.conformance.worker IMPLEMENTATION ...``.

Reads the names of checks from its standard input, a line each, and answers with a line of JSON. It
may crash or hang in one of them: whoever has started it starts another one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from gpufut.testing.conformance import runner
from gpufut.testing.conformance.implementation import load
from gpufut.testing.conformance.kit import ask, checks

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Ask, until there is nothing more to read."""
    spec, device, settings = arguments
    # What the implementation prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = {each.name: each for each in checks()}
    try:
        implementation = load(spec)
        bench = runner.bench_for(device, **json.loads(settings))
        about = {"version": implementation.version(), "name": implementation.name}
    except (LookupError, ImportError) as error:
        about = {"error": str(error)}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        answer = ask(known[line.strip()], implementation, bench)
        print(json.dumps(answer._asdict()), file=answers, flush=True)
    os._exit(0)  # what an implementation has left behind may hang at exit; that is a check's matter


if __name__ == "__main__":
    main(sys.argv[1:])

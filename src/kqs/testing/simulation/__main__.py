"""``python -m kqs.testing.simulation SEED``: what happened in one seed, line by line."""

from __future__ import annotations

import sys

from .runs import run


def main() -> int:
    """Print the story of the seed given; 1 when a promise was broken in it."""
    report = run(int(sys.argv[1]), story=True)
    for line in (*report.story, *(f"WRONG: {text}" for text in report.wrong)):
        print(line)
    print(f"seed {report.seed}: trace {report.trace}, {dict(report.counts)}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

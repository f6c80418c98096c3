"""`python tests/fuzz [--write] [--only KIND]`: try damaged inputs, print or write down how each ended."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.case import LIMIT_S, Row, run_case
from fuzz.page import PAGE, page_of
from fuzz.tried import all_cases, make_base


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}; tries everything")
    parser.add_argument("--only", default="", help="the cases whose names begin with this")
    options = parser.parse_args()
    rows: list[Row] = []
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        for case in all_cases():
            if not options.write and not case.id.startswith(options.only):
                continue
            start = time.perf_counter()
            try:
                found = run_case(case, base)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever comes through is what is looked for
                failures += 1
                print(f"FAILED {case.id}: {type(error).__name__}: {error}"[:4000], flush=True)
                continue
            rows += found
            for row in found:
                print(f"{case.id} | {row.command} | {row.outcome.ending} | {row.outcome.message!r}")
            print(f"    {time.perf_counter() - start:.2f} s", flush=True)
    print(f"{len(rows)} rows, {failures} failures")
    if options.write and not failures:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page_of(rows, limit_s=LIMIT_S), encoding="utf-8")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

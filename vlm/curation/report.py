from pathlib import Path


def write_report(out, features, history, places, *, seed, k):
    return out / "report.html"

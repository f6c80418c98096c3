"""`vlm report`: a page about a sweep, and its table in Markdown."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.errors import ConfigError
from vlm.settings import resolve


@command("report")
def main(config: DictConfig) -> None:
    """Entry point of `vlm report`."""
    values = resolve(config)
    averages, shifts = _averages(values["averages"]), _shifts(values["shifts"])
    if values["pictures"] < 0:
        raise ConfigError(f"pictures={values['pictures']} is less than none; 0 leaves pictures out")
    from vlm.evaluation.sweep_report import write_sweep_report

    page, table = write_sweep_report(
        Path(values["sweep"]),
        Path(values["out"] or values["sweep"]),
        baseline=values["baseline"],
        against=values["against"],
        averages=averages,
        shifts=shifts,
        num_pictures=values["pictures"],
    )
    print(f"report: {page}  (open it in a browser)")
    print(f"table: {table}")


def _averages(given: Any) -> dict[str, list[str]]:
    found = _mapping("averages", given, "{photos: [cifar10, caltech101]}")
    for name, datasets in found.items():
        if not isinstance(datasets, list) or not datasets or not all(isinstance(d, str) for d in datasets):
            raise ConfigError(
                f"averages.{name}={datasets!r} has to be a list of data sets, as [cifar10, caltech101]"
            )
    return found


def _shifts(given: Any) -> dict[str, str]:
    found = _mapping("shifts", given, "{imagenet_r: imagenet}")
    for shifted, base in found.items():
        if not isinstance(base, str):
            raise ConfigError(
                f"shifts.{shifted}={base!r} has to be the data set that {shifted} was made from, as imagenet"
            )
    return found


def _mapping(key: str, given: Any, example: str) -> dict[str, Any]:
    if not isinstance(given, dict | None):
        raise ConfigError(f"{key}={given!r} has to be a mapping, as {example}")
    return {str(name): value for name, value in (given or {}).items()}


if __name__ == "__main__":
    main()

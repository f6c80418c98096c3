"""`vlm bench data`: where loading spends its time, with the configuration of a training."""

from typing import Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve

_SECONDS = 5.0
# Enough for a vocabulary that cuts captions like the real one.
_MAX_CAPTIONS = 20_000


@command("bench_data")
def main(config: DictConfig) -> None:
    """Entry point of `vlm bench data`."""
    values = resolve(config)
    from vlm.data.tools.bench import advice, bench

    parts: dict[str, Any] = {name: build(values[name], name) for name in ("make_data", "data", "tokenizer")}
    data, recipe = parts["data"], parts["tokenizer"]
    data.check_tokenizer(recipe)
    if parts["make_data"] is not None:
        parts["make_data"].make()
    train_set = data.open()
    print(f"measuring for {3 * _SECONDS:.0f} seconds at most …")
    tokenizer = recipe and recipe.build(lambda limit: train_set.captions(min(limit, _MAX_CAPTIONS)))
    found = bench(data, train_set, tokenizer, seconds=_SECONDS)
    rows = [(name, ms, 1000 / ms if ms else 0) for name, ms in found.stages.items()]
    rows.append(("one core, all of it", sum(found.stages.values()), found.core_rate))
    print(f"{'stage':<28}{'ms/sample':>10}{'images/s':>10}")
    for name, ms, rate in rows:
        print(f"{name:<28}{ms:>10.3f}{rate:>10.0f}")
    print(f"{f'loader, {data.num_workers} workers':<28}{'':>10}{found.loader_rate:>10.0f}")
    print(advice(found, data))
    print("training that takes fewer images/s on each rank does not wait for data")

"""The root of the configuration, and the checks that run on it before anything is built.

Every yaml value is checked against the constructor it is meant for: keys by name, scalars by type. Nothing is
opened and no process is started before the whole configuration has passed.
"""

import dataclasses
import difflib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlm.errors import ConfigError, VlmError
from vlm.schema import unknown_key_message


def config_dir() -> str:
    """The folder of yaml files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "configs"
    return str(inside if inside.is_dir() else package.parent / "configs")


@dataclass
class RunSettings:
    """What the run is called and whether it goes on from its last checkpoint."""

    name: str = MISSING
    resume: bool = MISSING
    accept_changes: list[str] = MISSING
    seed: int = MISSING


@dataclass
class PathSettings:
    """Folders; relative ones start where the command is typed."""

    runs: str = MISSING
    data: str = MISSING


@dataclass
class TrainSettings:
    """Root keys of `train`; a component's keys are those of the class named by its `_target_`."""

    plan: bool = MISSING
    run: RunSettings = MISSING
    init_from: str | None = None
    resize_positions: bool = MISSING
    freeze: str | None = None
    paths: PathSettings = MISSING
    make_data: Any = None
    data: Any = MISSING
    tokenizer: Any = MISSING
    model: Any = MISSING
    objective: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    trainer: Any = MISSING
    checkpoint: Any = MISSING
    evaluation: Any = MISSING
    suite: Any = None
    logger: Any = MISSING
    bench: Any = None
    """Of `vlm bench step` alone."""


@dataclass
class EvaluateSettings:
    """Root keys of `vlm evaluate`."""

    run: str = MISSING
    paths: PathSettings = MISSING
    suite: Any = None
    weights: str = MISSING
    out: str | None = None
    device: str = MISSING
    batch_size: int = MISSING
    num_workers: int = MISSING
    bf16: bool = MISSING


@dataclass
class InterpolateSettings:
    """Root keys of `vlm interpolate`."""

    start: str = MISSING
    end: str = MISSING
    weights: list[float] = MISSING
    out: str = MISSING
    paths: PathSettings = MISSING
    suite: Any = None
    x: str | None = None
    y: str | None = None
    device: str = MISSING
    batch_size: int = MISSING
    num_workers: int = MISSING
    bf16: bool = MISSING


@dataclass
class ReportSettings:
    """Root keys of `vlm report`."""

    sweep: str = MISSING
    out: str | None = None
    baseline: str | None = None
    against: str | None = None
    averages: Any = None
    shifts: Any = None
    pictures: int = MISSING


@dataclass
class ShardsSettings:
    """The shards of `vlm embed` and `vlm negatives`."""

    shards: Any = MISSING


@dataclass
class EmbedPreprocessSettings:
    """What `vlm embed model=` does to pictures, as `data.preprocess` of training."""

    resize_mode: str | None = None
    interpolation: str | None = None
    background: list[int] | None = None


@dataclass
class EmbedSettings:
    """Root keys of `vlm embed`."""

    run: str | None = None
    model: Any = None
    data: ShardsSettings = MISSING
    out: str = MISSING
    preprocess: EmbedPreprocessSettings = MISSING
    device: str = MISSING
    batch_size: int = MISSING
    num_workers: int = MISSING
    bf16: bool = MISSING


@dataclass
class ClusterSettings:
    """Root keys of `vlm cluster`."""

    features: str = MISSING
    k: int = MISSING
    out: str = MISSING
    name: str = MISSING
    labels_per_sample: int = MISSING
    iterations: int = MISSING
    seed: int = MISSING
    device: str = MISSING


@dataclass
class NegativesSettings:
    """Root keys of `vlm negatives`."""

    data: ShardsSettings = MISSING
    maker: Any = MISSING
    captions: Any = MISSING
    language: str = MISSING
    per_caption: int = MISSING
    length_ratio: float = MISSING
    seed: int = MISSING
    name: str = MISSING
    out: str | None = None
    report: str = MISSING
    workers: int | None = None


@dataclass
class CaptionSettings:
    """Root keys of `vlm caption`."""

    run: str = MISSING
    weights: str = MISSING
    images: Any = MISSING
    out: str = MISSING
    report: str | None = None
    decoding: Any = MISSING
    device: str = MISSING
    batch_size: int = MISSING
    num_workers: int = MISSING
    bf16: bool = MISSING


@dataclass
class SweepSettings:
    """Root keys of `vlm sweep`."""

    checkpoints: Any = MISSING
    weights: str = MISSING
    datasets: Any = MISSING
    clip_benchmark: Any = MISSING
    tasks: Any = None
    languages: Any = None
    out: str = MISSING
    cache: str | None = None
    paths: PathSettings = MISSING
    open_clip: Any = MISSING
    device: str = MISSING
    batch_size: int = MISSING
    num_workers: int = MISSING
    bf16: bool = MISSING


@dataclass
class ExportSettings:
    """Root keys of `vlm export`."""

    run: str = MISSING
    weights: str = MISSING
    format: str = MISSING
    out: str = MISSING


def register_schemas() -> None:
    """Make the root schemas known to Hydra, so that a misspelt root key in any yaml is an error."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainSettings)
    store.store(name="evaluate_schema", node=EvaluateSettings)
    store.store(name="interpolate_schema", node=InterpolateSettings)
    store.store(name="report_schema", node=ReportSettings)
    store.store(name="embed_schema", node=EmbedSettings)
    store.store(name="caption_schema", node=CaptionSettings)
    store.store(name="export_schema", node=ExportSettings)
    store.store(name="sweep_schema", node=SweepSettings)
    store.store(name="cluster_schema", node=ClusterSettings)
    store.store(name="negatives_schema", node=NegativesSettings)


def root_keys(schema: str) -> list[str]:
    """The keys of a root schema, by the name of its class such as `TrainSettings`; empty for another name."""
    known = globals().get(schema)
    return [field.name for field in dataclasses.fields(known)] if dataclasses.is_dataclass(known) else []


def resolve(config: DictConfig) -> dict[str, Any]:
    """Plain data with every interpolation resolved.

    Raises:
        ConfigError: naming the values that have no default and were not set.
    """
    try:
        missing = sorted(str(key) for key in OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(
                f"no value for {', '.join(missing)}; set it on the command line: {missing[0]}=..."
            )
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from error
    return typing.cast(dict[str, Any], resolved)


def build(node: Any, key: str) -> Any:
    """Instantiate a node (and the nodes in it) by `_target_`, after checking every key and type in it.

    Args:
        key: where the node stands in the configuration, for messages.
    """
    for where, target_node in _target_nodes(node, key):
        _check_target(target_node, where)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        # Hydra wraps whatever a constructor raises.
        if isinstance(error.__cause__, VlmError):
            raise error.__cause__ from None
        raise ConfigError(f"{key}: {error.__cause__ or error}") from error


def build_evaluators(suite: Any) -> dict[str, Any]:
    """The evaluators of a `suite` node, a mapping, by name; none where there is no suite."""
    if not suite:
        return {}
    if not isinstance(suite, Mapping):
        raise ConfigError(f"suite={suite!r} is a {type(suite).__name__}; a suite maps names to evaluators")
    for name, value in suite.items():
        if name != "evaluators" and not isinstance(value, str | list):  # these are there for interpolation
            raise ConfigError(unknown_key_message(str(name), ["evaluators"], where="suite"))
    nodes = suite.get("evaluators")
    if not isinstance(nodes, Mapping):
        raise ConfigError("suite.evaluators is missing; a suite maps names to evaluators")
    return _build_each(nodes, "suite.evaluators")


def build_loggers(loggers: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """The loggers of a `logger` node."""
    return tuple(_build_each(loggers or {}, "logger").values())


def _build_each(nodes: Mapping[str, Any], key: str) -> dict[str, Any]:
    for name, node in nodes.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ConfigError(f"{key}.{name} has no _target_; it says which class to build")
    return {name: build(node, f"{key}.{name}") for name, node in nodes.items()}


def _target_nodes(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from _target_nodes(value, f"{key}.{name}")
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _target_nodes(value, f"{key}.{position}")


def _check_target(node: Mapping[str, Any], key: str) -> None:
    try:
        target: Callable[..., Any] = get_object(node["_target_"])
    except Exception as error:
        raise ConfigError(
            f"{key}._target_={node['_target_']} {_not_imported(node['_target_'], error)}"
        ) from error
    parameters = inspect.signature(target).parameters
    hints = _type_hints(target)
    values = {str(name): value for name, value in node.items() if not str(name).startswith("_")}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in values:
            if name not in parameters:
                raise ConfigError(unknown_key_message(name, parameters, where=key))
    for name, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and not variadic and name not in values:
            raise ConfigError(f"{key}.{name} is missing; set it")
    for name, value in values.items():
        if not _fits(value, hints.get(name, Any)):
            raise ConfigError(_misfit_message(f"{key}.{name}".lstrip("."), value, hints[name]))


def _not_imported(target: Any, error: Exception) -> str:
    module, _, name = str(target).rpartition(".")
    try:
        found = importlib.import_module(module)
    except Exception:
        return f"cannot be imported: {' '.join(str(error).split())}"
    close = difflib.get_close_matches(name, getattr(found, "__all__", []), n=1)
    hint = f"; did you mean {module}.{close[0]}?" if close else ""
    return f"cannot be imported: there is no {name} in {module}{hint}"


def _misfit_message(key: str, value: Any, hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"{key}={value!r} is not one of {', '.join(map(repr, typing.get_args(hint)))}"
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        return f"{key}={str(value)[:20]} has to be a finite number"
    return f"{key}={value!r} is a {type(value).__name__}; expected {_named(hint)}"


def _named(hint: Any) -> str:
    """A type hint in the words of a yaml file."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_named, arguments))
    if typing.get_origin(hint) is Sequence:
        return f"a list of {_named(arguments[0])}"
    if typing.get_origin(hint) is Mapping:
        of = _named(arguments[1]) if arguments and arguments[1] is not Any else ""
        return f"a mapping of names to {of}" if of else "a mapping"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, arguments))
    if hint is types.NoneType:
        return "null"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # names of another project that exist for type checkers only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a yaml value fits a hint of scalars, lists and mappings; others are left to the constructor."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, list) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(item, typing.get_args(hint)[1]) for item in value.values()
        )
    if dataclasses.is_dataclass(hint) or getattr(hint, "_is_protocol", False):
        return isinstance(value, Mapping) and "_target_" in value
    if isinstance(value, Mapping | list):
        return hint not in (int, float, str, bool, types.NoneType)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, types.NoneType):
        return isinstance(value, hint)
    return True

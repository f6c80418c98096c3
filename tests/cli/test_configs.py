from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from toy_run import composed, tiny_captions, tiny_images, tiny_overrides

from vlm.cli.train import train_from
from vlm.settings import build, build_evaluators, build_loggers, config_dir, register_schemas

GROUPS = ["objective", "optimizer", "schedule", "trainer", "logger", "tokenizer", "data", "make_data"]
OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted(Path(config_dir(), group).glob("*.yaml"))
]
MODELS = sorted(path.stem for path in Path(config_dir(), "model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in Path(config_dir(), "experiment").glob("*.yaml"))
SUITE_DIR = Path(config_dir(), "suite")
SUITES = sorted(str(path.relative_to(SUITE_DIR).with_suffix("")) for path in SUITE_DIR.rglob("*.yaml"))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_builds(group: str, option: str, tmp_path: Path) -> None:
    merges = tmp_path / "merges"
    merges.touch()
    required = {
        ("tokenizer", "clip"): [f"tokenizer.merges={merges}"],
        ("tokenizer", "transformers"): ["+model.text.name=none"],
        ("objective", "margin_softmax"): ["objective.num_classes=2"],
    }.get((group, option), [])
    values = composed(["experiment=toy", f"{group}={option}", *required])
    built = build_loggers(values[group]) if group == "logger" else build(values[group], group)
    assert (built is None) == (option == "none" and group == "tokenizer")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_its_components_build(experiment: str) -> None:
    values = composed([f"experiment={experiment}", "data.train.shards=x.tar"])
    for name in GROUPS:
        if name != "logger":
            build(values[name], name)
    build_loggers(values["logger"])
    build_evaluators(values["suite"])


@pytest.mark.parametrize("model", MODELS)
def test_every_model_config_is_a_complete_spec(model: str) -> None:
    from vlm.models import ModelSpec

    with initialize_config_dir(config_dir(), version_base="1.3"):
        values = OmegaConf.to_container(compose(f"model/{model}"), resolve=True)
    spec = ModelSpec.from_mapping(values["model"], key="model")  # type: ignore[index, call-overload]
    assert ModelSpec.from_mapping(spec.to_mapping(), key="model") == spec


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_composes_for_evaluate(suite: str) -> None:
    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("evaluate", ["run=x", f"suite={suite}"])
    assert "evaluators" in config.suite


def take_steps(experiment: str, toy: Path, *overrides: str) -> Path:
    """A run of the recipe with everything made small."""
    is_of_images = experiment.startswith("mvt_")
    tiny = tiny_images if is_of_images else tiny_overrides
    if "coca" in experiment.partition("_")[0]:
        tiny = partial(tiny_captions, experiment=experiment)
    tiny = tiny(toy, f"run.name={experiment}", "suite=none", "trainer.max_steps=3", *overrides)
    captions = "null" if is_of_images else "txt"
    shards = [
        f"data.train.shards={toy}/data/toy/train/*.tar",
        f"data.train.captions={captions}",
        "make_data=toy",
    ]
    return train_from(composed([f"experiment={experiment}", *tiny[1:], *shards]))


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name != "toy"])
def test_every_experiment_takes_steps_when_it_is_made_tiny(experiment: str, toy: Path) -> None:
    overrides = []
    if experiment.startswith("lit_"):
        before = experiment.replace("lit_", "mvt_")
        (stage,) = [name for name in EXPERIMENTS if name.startswith(before)]
        overrides = [f"init_from={take_steps(stage, toy, f'run.name=before_{experiment}')}"]
    if experiment.startswith("degla_"):
        (stage,) = [name for name in EXPERIMENTS if experiment == f"degla_{name}"] or ["clip_vit_b32"]
        named = [f"run.name=before_{experiment}"]
        if experiment == "degla_vit_b32_coco":
            named += ["++model.image.options.act_layer=quick_gelu", "model.text.activation=quick_gelu"]
        overrides = [f"init_from={take_steps(stage, toy, *named)}"]
    assert (take_steps(experiment, toy, *overrides) / "checkpoints" / "step_00000003").is_dir()


def test_no_command_leaves_a_log_of_hydra() -> None:
    for file in Path(config_dir()).glob("*.yaml"):
        defaults = [list(entry) for entry in OmegaConf.load(file)["defaults"] if not isinstance(entry, str)]
        assert ["override hydra/job_logging"] in defaults or file.stem == "bench_step", file

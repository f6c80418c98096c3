"""The commands and programs of the documentation run, at toy size, and print what the pages say.

A page is read from top to bottom in one folder. Of its fenced blocks, `bash` and `python` are run, a `yaml`
block whose comment names a path becomes that file, and `output` is what the block before it prints.
`console` and `text` are for what a laptop cannot run.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from foreign_models import clip_folder
from PIL import Image
from safetensors.torch import load_file
from small_shards import image_bytes, write_shards, write_tar
from toy_run import SIZES, TINY_IMAGE, TINY_IMAGE_DECODER, TINY_MODEL, TINY_PATCHES, TINY_TEXT

from vlm.cli import main as vlm_command
from vlm.cli import train as train_command
from vlm.data.writer import ShardWriter

ROOT = Path(__file__).parents[2]
PAGES = {  # what each page has at least: a page that loses its commands loses its test
    "README.md": {"bash": 8, "python": 1, "output": 1},
    "docs/guides/your_own_data.md": {"bash": 19, "python": 2, "yaml": 2, "output": 8},
    "docs/guides/shards.md": {"bash": 9, "output": 5},
    "docs/guides/remote_data.md": {"bash": 2, "output": 1},
    "docs/guides/resuming.md": {"bash": 4, "python": 1, "output": 2},
    "docs/guides/slurm.md": {},
    "docs/guides/scaling.md": {"bash": 2},
    "docs/guides/speed.md": {"bash": 7},
    "docs/guides/weights.md": {"bash": 9, "output": 2},
    "docs/guides/exporting.md": {"bash": 7, "python": 2, "output": 2},
    "docs/guides/evaluating.md": {"bash": 13, "python": 1, "yaml": 2, "output": 1},
    "docs/guides/sweeping.md": {"bash": 3, "python": 1, "yaml": 1, "output": 1},
    "docs/guides/compositional.md": {"bash": 3, "yaml": 1},
    "docs/guides/virtual_classes.md": {"bash": 8, "python": 1, "output": 2},
    "docs/guides/hard_negatives.md": {"bash": 3, "python": 1, "output": 2},
    "docs/guides/interpolating.md": {"bash": 6},
    "docs/guides/captions.md": {"bash": 6, "python": 1, "yaml": 1},
    "docs/concepts/sample_order.md": {"python": 2, "output": 2},
    "docs/concepts/gradient_contract.md": {"python": 1, "output": 1},
    "docs/reference/damaged_input.md": {},
    "docs/concepts/cost_at_scale.md": {"python": 1, "output": 1},
}
# Their commands take longest, and other tests run the same.
LONG_PAGES = (
    "docs/guides/exporting.md",
    "docs/guides/speed.md",
    "docs/guides/evaluating.md",
    "docs/guides/virtual_classes.md",
    "docs/guides/hard_negatives.md",
    "docs/guides/interpolating.md",
    "docs/guides/captions.md",
)
ENTRIES: dict[str, Callable[[], None]] = {"train": train_command.main, "vlm": vlm_command.main}
MODULES = {"train": "vlm.cli.train", "vlm": "vlm.cli.main", "torchrun": "torch.distributed.run"}
COLOURS = {
    "red": ("红色", (200, 30, 30)),
    "green": ("绿色", (30, 160, 30)),
    "blue": ("蓝色", (30, 30, 200)),
    "grey": ("灰色", (128, 128, 128)),
    "black": ("黑色", (0, 0, 0)),
    "yellow": ("黄色", (240, 220, 40)),
}


@dataclass(frozen=True)
class Block:
    """A fenced block, and the output block behind it."""

    language: str
    text: str
    output: str | None


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    following = [*found[1:], ("", "")]
    return [
        Block(language, body, after if kind == "output" else None)
        for (language, body), (kind, after) in zip(found, following, strict=True)
        if language != "output"
    ]


def lines_of(block: Block) -> list[list[str]]:
    """The commands of a bash block, as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def starts_processes(words: list[str]) -> bool:
    """Whether a command starts ranks, which takes long."""
    return words[0] == "torchrun" or "trainer.devices=2" in words


def commands_of(page: str) -> list[list[str]]:
    return [line for block in blocks_of(page) if block.language == "bash" for line in lines_of(block)]


def tiny(words: list[str]) -> list[str]:
    """The command with what makes it small; everything else stays as the page has it."""
    trains = (words[0] == "train" or "vlm.cli.train" in words) and not {"--help", "--cfg"} & set(words)
    return [*words, *_tiny_training(" ".join(words))] if trains else words


def _tiny_training(told: str) -> Iterator[str]:
    yield from ("trainer.max_steps=2", "schedule.warmup_steps=1", "trainer.log_every_n_steps=1")
    yield from ("checkpoint.every_n_steps=1", "evaluation.every_n_steps=2", "trainer.accelerator=cpu")
    if re.search(r"experiment=(mvt_|lit_|degla_|coca_|sycoca_)?toy\b", told):
        yield from (f"make_data.{name}={count}" for name, count in SIZES.items())
    if "--config-dir" not in told:  # a recipe has a model and a batch size of its own
        model = ["model=toy", *(TINY_IMAGE if "experiment=mvt_" in told else TINY_MODEL)]
        if "coca_toy" in told:
            decoder = TINY_IMAGE_DECODER if "sycoca_toy" in told else []
            model = [*TINY_PATCHES, *decoder, *TINY_TEXT]
        defaults = [*model, "data.global_batch_size=32", "data.num_workers=0"]
        yield from (default for default in defaults if f" {default.partition('=')[0]}=" not in told)


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run in this process; what it prints, then the message it ends with."""
    printed = io.StringIO()
    monkeypatch.setattr(sys, "argv", tiny(words))
    message = ""
    with contextlib.redirect_stdout(printed):
        try:
            ENTRIES[words[0]]()
        except SystemExit as end:
            if isinstance(end.code, int) and end.code:
                pytest.fail(f"exit code {end.code}: {shlex.join(words)}")
            message = str(end.code or "")
    return printed.getvalue() + message


def start_command(words: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", MODULES[words[0]], *tiny(words)[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


def run_bash(block: Block, monkeypatch: pytest.MonkeyPatch, *, everything: bool) -> str:
    printed = ""
    for words in lines_of(block):
        assert words[0] in MODULES, f"{words[0]} is no command of the project; fence it as text or console"
        if not starts_processes(words):
            printed += run_command(words, monkeypatch)
        elif everything:
            start_command(words)
    return printed


def write_yaml(block: Block) -> None:
    path = re.search(r"^# (\S+\.yaml)$", block.text, flags=re.MULTILINE)
    if path is not None:
        target = Path(path[1])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")


def run_python(block: Block, names: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, "<documentation>", "exec"), names)
    return printed.getvalue()


def follow(page: str, monkeypatch: pytest.MonkeyPatch, *, everything: bool) -> None:
    names: dict[str, object] = {}
    for block in blocks_of(page):
        printed = ""
        if block.language == "yaml":
            write_yaml(block)
        elif block.language == "python":
            printed = run_python(block, names)
        elif block.language == "bash":
            printed = run_bash(block, monkeypatch, everything=everything)
        if block.output is not None:
            assert printed.strip() == block.output.strip(), block.text
        else:
            assert "Error: " not in printed, f"{block.text}{printed}"


def colour_samples(count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Plain squares with captions in English and Chinese."""
    for number in range(count):
        name = list(COLOURS)[number % len(COLOURS)]
        chinese, shade = COLOURS[name]
        record = {"caption_en": f"a {name} square", "caption_zh": [f"{chinese}的正方形"], "colour": name}
        members = {
            "jpg": image_bytes(shade, size=(16, 16), kind="JPEG"),
            "txt": f"a {name} square".encode(),
            "json": json.dumps(record).encode(),
            "cls": str(number % len(COLOURS)).encode(),
        }
        yield f"{number:06d}", members


def place_what_readers_have(folder: Path) -> None:
    """A picture, a folder of pictures, shards from elsewhere, a data set in CLIP_benchmark's layout."""
    Image.new("RGB", (20, 20), COLOURS["red"][1]).save(folder / "picture.png")
    (folder / "pictures").mkdir()
    for key, members in colour_samples(300):
        for extension in ("jpg", "txt", "json"):
            content = members[extension]
            if extension == "json":  # people's files have the captions alone
                content = json.dumps({k: v for k, v in json.loads(content).items() if k != "colour"}).encode()
            (folder / "pictures" / f"{key}.{extension}").write_bytes(content)
    rows = (f"pictures/{number:06d}.jpg,a picture of number {number}" for number in range(300))
    (folder / "photos.csv").write_text("\n".join(["filepath,title", *rows]) + "\n")
    place_cases(folder)
    write_shards(folder / "web", [40, 40])
    place_models(folder)
    write_shards(folder / "archive", [40], suffix="tar.gz")
    with ShardWriter(folder / "photos", prefix="", max_samples=100) as writer:
        for key, members in colour_samples(24):
            writer.write(key, members)
    colours = folder / "datasets" / "colours"
    write_tar(colours / "test" / "0.tar", dict(colour_samples(12)))
    (colours / "test" / "nshards.txt").write_text("1")
    (colours / "classnames.txt").write_text("\n".join(COLOURS))
    (colours / "zeroshot_classification_templates.txt").write_text("a {c} square\n{c}\n")


def place_cases(folder: Path) -> None:
    """Cases in the documented format, and in one that takes a mapping, of the same pictures."""
    cases = [
        {"image": "000001.jpg", "true_captions": ["a green square"], "false_captions": ["a red square"]},
        {"image": "000002.jpg", "true_captions": "a blue square", "false_captions": ["a square blue"]},
    ]
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    entries = [[number, "a square", "no square", {"relation": "none"}] for number in range(12)]
    (folder / "spatial.json").write_text(json.dumps(entries))


def place_models(folder: Path) -> None:
    """Tiny ones under the names of large ones: a folder of transformers, files of open_clip and of timm."""
    import timm  # after vlm, which makes torchvision importable on a CPU

    clip_folder(folder / "clip-vit-base-patch32", image={"hidden_act": "quick_gelu"})
    tiny = ROOT / "tests" / "inference" / "open_clip_tiny"
    torch.save(
        {"epoch": 32, "state_dict": load_file(tiny / "open_clip_model.safetensors")}, folder / "epoch_32.pt"
    )
    config = json.loads((tiny / "open_clip_config.json").read_text())["model_cfg"]
    (folder / "ViT-B-32.json").write_text(json.dumps(config))
    resnet = timm.create_model("resnet10t", channels=[8, 8, 16, 16], stem_width=8, norm_layer="groupnorm1")
    torch.save({"state_dict": resnet.state_dict()}, folder / "resnet10t.pth.tar")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    place_what_readers_have(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return monkeypatch


def test_every_page_is_followed() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert {str(page.relative_to(ROOT)) for page in pages} == PAGES.keys()


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.long) if page in LONG_PAGES else page for page in PAGES]
)
def test_a_page_does_what_it_says(page: str, reader: pytest.MonkeyPatch) -> None:
    follow(page, reader, everything=False)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(starts_processes, commands_of(page)))])
def test_a_page_does_what_it_says_on_several_processes(page: str, reader: pytest.MonkeyPatch) -> None:
    follow(page, reader, everything=True)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_commands(page: str) -> None:
    blocks = blocks_of(page)
    found = {
        "bash": len(commands_of(page)),
        "python": sum(block.language == "python" for block in blocks),
        "yaml": sum(block.language == "yaml" for block in blocks),
        "output": sum(block.output is not None for block in blocks),
    }
    assert all(found[kind] >= least for kind, least in PAGES[page].items()), found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"`((?:vlm|tests|configs)/[\w/.]+)`", text)
    missing = [t for t in targets if not ((ROOT / page).parent / t).exists() and not (ROOT / t).exists()]
    assert not missing

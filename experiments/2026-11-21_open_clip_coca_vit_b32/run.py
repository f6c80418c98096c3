"""A random coca_ViT-B-32 of open_clip in ours: features, logits, and greedy captions with their CPU seconds.

python run.py PYTHON FOLDER    PYTHON is an interpreter that has open_clip and transformers 4.55;
                               2.3 GB are written to FOLDER
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vlm
from vlm.inference.decoding import Decoding
from vlm.inference.foreign import Given, import_model
from vlm.inference.generate import generate
from vlm.models import Cache, DualEncoder

HERE = Path(__file__).parent
MAKE = HERE.parents[1] / "tests/inference/open_clip_coca_tiny/make.py"
MERGES = "import open_clip.tokenizer as t; print(t.default_bpe())"
BATCHES, ROUNDS, TOKENS = (4, 16), 3, 64
PADDING, BOT, EOT = 0, 49406, 49407
EMBEDDING = 30  # times as large, so that a token changes what follows
GREEDY = Decoding(strategy="greedy", beams=1, top_p=1.0, temperature=1.0, max_length=TOKENS, seed=0)


def imported(python: str, folder: Path) -> tuple[Path, DualEncoder]:
    """The folder that open_clip writes, and the model of it."""
    source, ours = folder / "source", folder / "imported"
    if not ours.exists():
        subprocess.run([python, str(MAKE), "coca_ViT-B-32", str(source)], check=True)
        done = subprocess.run([python, "-c", MERGES], check=True, capture_output=True, text=True)
        unknown = ("model_config", "activation", "head_width", "mean", "std", "resize_mode")
        given = Given(
            tokenizer_path=done.stdout.strip(),
            **dict.fromkeys((*unknown, "interpolation", "background")),
        )
        import_model(source, ours, given)
    return source, vlm.load(ours).model


@torch.no_grad()
def compare(model: DualEncoder, source: Path) -> None:
    expected = load_file(source / "expected.safetensors")
    image, text = model.image_states(expected["image"]), model.text_states(expected["text"])
    logits, of_real = model.caption_logits(image, text), text.mask
    print(f"tokens of the texts: {text.mask.sum(1).tolist()}")
    for name, own, other in (
        ("image features", image.vector, expected["image_features"]),
        ("text features", text.vector, expected["text_features"]),
        ("logits", logits[of_real], expected["logits"][of_real]),
    ):
        difference, size = (own - other).abs().max().item(), other.square().mean().sqrt().item()
        print(f"{name}: largest difference {difference:.2g}, root mean square {size:.2g}")


def cached(model: DualEncoder, images: Tensor) -> Tensor:
    return generate(
        model,
        model.image_states(images).memory,
        GREEDY,
        bot_id=BOT,
        eot_id=EOT,
        max_length=TOKENS,
        numbers=range(len(images)),
    )


def uncached(model: DualEncoder, images: Tensor) -> Tensor:
    """The whole caption anew for each token; no row ends, so that none is looked at."""
    memory = model.image_states(images).memory
    ids = torch.full((len(images), 1), BOT)
    while ids.shape[1] < TOKENS:
        logits = model.next_logits(ids, memory, Cache(TOKENS))
        ids = torch.cat([ids, logits.argmax(1, keepdim=True)], dim=1)
    return ids


class Peer:
    """open_clip in a process of its own, which waits between calls."""

    def __init__(self, python: str, folder: Path) -> None:
        command = [python, str(HERE / "peer.py"), str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, count: int) -> tuple[float, Tensor]:
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        return found["seconds"], torch.tensor(found["ids"])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def timed(write: Callable[[DualEncoder, Tensor], Tensor], model: DualEncoder, images: Tensor):
    start = time.process_time()
    ids = write(model, images)
    return time.process_time() - start, ids


@torch.no_grad()
def race(model: DualEncoder, images: Tensor, peer: Peer) -> None:
    seconds = {(name, batch): [] for name in ("cached", "uncached", "open_clip") for batch in BATCHES}
    for number in range(ROUNDS):
        for batch in BATCHES:
            own, ids = timed(cached, model, images[:batch])
            other, theirs = peer(batch)
            seconds["cached", batch].append(own)
            seconds["open_clip", batch].append(other)
            # open_clip writes the end of text as the last token, whatever the logits are.
            assert torch.equal(ids[:, :-1], theirs[:, :-1])
            if batch == BATCHES[0] or number == 0:  # takes minutes
                slow, same = timed(uncached, model, images[:batch])
                seconds["uncached", batch].append(slow)
                assert torch.equal(ids, same)
            captions, tokens = len(set(map(tuple, ids.tolist()))), len(ids.unique())
            print(f"{batch} images: the same {captions} different captions of {tokens} different tokens")
            for (name, size), values in seconds.items():
                if values:
                    middle, listed = statistics.median(values), ", ".join(f"{value:.1f}" for value in values)
                    print(f"  {name} {size}: median {middle:.1f} s of {listed}", flush=True)


def main() -> None:
    python, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    source, model = imported(python, folder)
    compare(model, source)
    with torch.no_grad():  # as `peer.py` does; without the two tokens no caption ends
        model.text.token_embedding.weight *= EMBEDDING
        model.text_decoder.vocabulary.weight[[PADDING, EOT]] = 0
    torch.manual_seed(1)
    images = torch.randn(max(BATCHES), 3, 224, 224) + 2 * torch.randn(max(BATCHES), 3, 1, 1)  # coloured
    save_file({"images": images}, source / "images.safetensors")
    peer = Peer(python, source)
    race(model, images, peer)
    peer.close()


if __name__ == "__main__":
    main()

"""open_clip's side: greedy captions and their CPU seconds, for each number of images that stdin names."""

import json
import sys
import time
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file

TOKENS, PADDING, EOT, EMBEDDING = 64, 0, 49407, 30


@torch.no_grad()
def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = open_clip.get_model_config("coca_ViT-B-32")
    config.pop("custom_text")
    model = open_clip.CoCa(**config).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    model.text.token_embedding.weight *= EMBEDDING
    model.text_decoder.text_projection[:, [PADDING, EOT]] = 0
    images = load_file(folder / "images.safetensors")["images"]
    model.generate(images[:1], generation_type="top_k", top_k=1, seq_len=8)
    for line in sys.stdin:
        start = time.process_time()
        ids = model.generate(images[: int(line)], generation_type="top_k", top_k=1, seq_len=TOKENS)
        seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds, "ids": ids.tolist()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

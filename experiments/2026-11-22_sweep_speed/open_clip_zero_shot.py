"""open_clip's own zero-shot classification of a folder in CLIP_benchmark's layout.

python open_clip_zero_shot.py MODEL WEIGHTS FOLDER WORKERS OUT
"""

import json
import sys
import time
from pathlib import Path

import open_clip
import torch
import webdataset


def main() -> None:
    name, weights, folder, workers, out = sys.argv[1:]
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights)
    model.eval()
    names = Path(folder, "classnames.txt").read_text().splitlines()
    templates = Path(folder, "zeroshot_classification_templates.txt").read_text().splitlines()
    begin = time.perf_counter()
    with torch.no_grad():
        vectors = open_clip.build_zero_shot_classifier(
            model,
            open_clip.get_tokenizer(name),
            names,
            [template.replace("{c}", "{}") for template in templates],
            num_classes_per_batch=10,
        )
        texts = time.perf_counter() - begin
        data = webdataset.WebDataset(str(Path(folder, "test", "0.tar")), shardshuffle=False)
        pairs = data.decode("pil").to_tuple("jpg", "cls").map_tuple(preprocess, None)
        begin, right, count = time.perf_counter(), 0, 0
        loader = torch.utils.data.DataLoader(pairs.batched(64), batch_size=None, num_workers=int(workers))
        for images, classes in loader:
            features = torch.nn.functional.normalize(model.encode_image(images), dim=-1)
            right += int(((features @ vectors).argmax(dim=1) == torch.as_tensor(classes)).sum())
            count += len(images)
    found = {"images": time.perf_counter() - begin, "texts": texts, "acc1": right / count}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

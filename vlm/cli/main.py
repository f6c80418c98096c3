"""`vlm VERB`: finds the verb and hands over; a verb's imports cost nothing until it is called."""

import importlib
import keyword
import sys

VERBS = {
    "bench": "measure losses, training steps, loading",
    "caption": "captions of pictures by a model with a decoder",
    "cluster": "k-means of features; the nearest clusters become labels beside the shards",
    "embed": "features of shards by a trained tower",
    "evaluate": "score a run or a checkpoint and write a report",
    "export": "make a checkpoint into files of transformers, open_clip or ONNX",
    "import": "make a model of open_clip or transformers into a checkpoint",
    "interpolate": "checkpoints between two, and what each keeps of either",
    "negatives": "captions that are wrong for their image, beside the shards",
    "report": "a page about a sweep, and its table in Markdown",
    "shards": "pack, index, check, preview shards; toy shards",
    "sweep": "score many checkpoints on many data sets; one table of all",
}

HELP = """usage: vlm VERB [key=value ...]

{verbs}

`vlm VERB --help` shows examples, `vlm VERB --cfg job` the keys and their values.
Training is the command `train`.
"""


def main() -> None:
    """Entry point of the command `vlm`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print(HELP.format(verbs="\n".join(f"  {name:<12} {text}" for name, text in VERBS.items())))
        return
    if verb not in VERBS:
        sys.exit(f"vlm: no verb {verb!r}; there are {', '.join(VERBS)}")
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    module = f"{verb}_" if keyword.iskeyword(verb) else verb
    importlib.import_module(f"vlm.cli.{module}").main()


if __name__ == "__main__":
    main()

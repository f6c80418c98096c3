"""Commands of two words, `vlm GROUP VERB`: help, and handing over to the verb's module."""

import importlib
import sys
from collections.abc import Mapping

_HELP = """usage: vlm {group} VERB [key=value ...]

{verbs}

`vlm {group} VERB --help` shows a verb's keys and their values.
"""


def hand_over(group: str, verbs: Mapping[str, tuple[str, str]]) -> None:
    """Call `main` of `vlm.cli.<group>.<verb>`, whose imports cost nothing until then.

    Args:
        verbs: what each is for, and arguments of an example.
    """
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        name, text = max(map(len, verbs)) + 1, max(len(text) for text, _ in verbs.values()) + 2
        lines = (f"  {v:<{name}} {t:<{text}} vlm {group} {v} {example}" for v, (t, example) in verbs.items())
        print(_HELP.format(group=group, verbs="\n".join(lines)))
        return
    if verb not in verbs:
        sys.exit(f"vlm {group}: no verb {verb!r}; there are {', '.join(verbs)}")
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    importlib.import_module(f"vlm.cli.{group}.{verb}").main()

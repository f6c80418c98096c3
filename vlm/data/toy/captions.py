"""English and Chinese captions of toy scenes, and captions that lie about them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from vlm.data.toy.scenes import ATTRIBUTES, Kind, Relation, Scene, Thing

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

CHINESE = {
    "red": "红色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "black": "黑色",
    "solid": "实心", "striped": "条纹", "dotted": "波点", "hollow": "空心",
    "circle": "圆形", "square": "方块", "triangle": "三角形",
    "star": "五角星", "heart": "爱心", "cross": "十字",
    "small": "小", "large": "大",
}  # fmt: skip

CLASS_TEMPLATES: Mapping[Language, tuple[str, ...]] = {
    "en": ("a {c}", "there is a {c}", "a picture of a {c}"),
    "zh": ("一个{c}", "图中有一个{c}", "{c}"),
}

# {a} is the first thing, {b} and {c} the others; {r} and {s} say how the first stands to each of them.
PHRASES: Mapping[Language, Mapping[int, tuple[str, ...]]] = {
    "en": {
        1: ("a {a}", "there is a {a}", "a picture of a {a}"),
        2: (
            "a {a} {r} a {b}",
            "there is a {a} {r} a {b}",
            "{r} a {b} there is a {a}",
            "a picture of a {a} {r} a {b}",
        ),
        3: ("a {a} {r} a {b} and {s} a {c}", "there is a {a} {r} a {b} and {s} a {c}"),
    },
    "zh": {
        1: ("一个{a}", "图中有一个{a}", "{a}"),
        2: ("{a}在{b}的{r}", "一个{a}在一个{b}的{r}", "{b}的{r}有一个{a}", "图中{b}的{r}是一个{a}"),
        3: ("{a}在{b}的{r}，在{c}的{s}", "{b}的{r}、{c}的{s}有一个{a}"),
    },
}

RELATIONS: Mapping[Language, Mapping[Relation, str]] = {
    "en": {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"},
    "zh": {"left": "左边", "right": "右边", "above": "上面", "below": "下面"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a caption says, apart from its language and wording.

    Args:
        relations: as in `Scene`.
        sizes: whether the caption names the size of its things.
    """

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]
    sizes: bool


def class_name(kind: Kind, language: Language) -> str:
    """`red striped circle` or `红色条纹圆形`."""
    values = (kind.colour, kind.texture, kind.shape)
    return " ".join(values) if language == "en" else "".join(CHINESE[value] for value in values)


def _noun(thing: Thing, language: Language, *, sizes: bool) -> str:
    name = class_name(thing.kind, language)
    if not sizes:
        return name
    if language == "en":
        return f"{thing.size} {name}"
    shape = CHINESE[thing.kind.shape]
    return name.removesuffix(shape) + CHINESE[thing.size] + shape  # Chinese puts size next to the noun


def wordings(statement: Statement, language: Language) -> list[str]:
    """The statement in every phrase that the language has for it."""
    names = [_noun(thing, language, sizes=statement.sizes) for thing in statement.things]
    relations = [RELATIONS[language][relation] for relation in statement.relations]
    blanks = dict(zip("abc", names, strict=False)) | dict(zip("rs", relations, strict=False))
    return [phrase.format(**blanks) for phrase in PHRASES[language][len(names)]]


def true_statement(scene: Scene, *, sizes: bool) -> Statement:
    """What holds of the scene."""
    return Statement(things=scene.things, relations=scene.relations, sizes=sizes)


def replaced(statement: Statement, attribute: str, rng: Random) -> Statement | None:
    """One of the things with another value of `attribute`, unlike the others; None where there is no such.

    Like every lie here it is as probable a caption as the truth: of seen kinds where the truth is, else of
    held-out ones. Reading alone does not tell them apart.
    """
    position = rng.randrange(len(statement.things))
    thing = statement.things[position]
    others = [other for place, other in enumerate(statement.things) if place != position]
    taken = {thing.value(attribute)}
    if attribute != "size":
        taken |= {other.value(attribute) for other in others}
    options = [thing.having(attribute, value) for value in ATTRIBUTES[attribute] if value not in taken]
    options = [option for option in options if option.kind.held_out == thing.kind.held_out]
    if not options:
        return None
    things = list(statement.things)
    things[position] = rng.choice(options)
    return replace(statement, things=tuple(things))


def swapped(statement: Statement, attribute: str) -> Statement | None:
    """The first two things with their values of `attribute` exchanged (`relation`: their places).

    None where that changes nothing, or makes held-out kinds of seen ones or the reverse.
    """
    first, second, *others = statement.things
    if attribute == "relation":
        return replace(statement, things=(second, first, *others))
    if first.value(attribute) == second.value(attribute):
        return None
    things = (
        first.having(attribute, second.value(attribute)),
        second.having(attribute, first.value(attribute)),
    )
    if any(lie.kind.held_out != first.kind.held_out for lie in things):
        return None
    return replace(statement, things=(*things, *others))


def lies(statement: Statement, rng: Random) -> dict[str, Statement]:
    """Every lie that the statement allows, by what was done: `replace_colour`, `swap_relation`."""
    named = [name for name in ATTRIBUTES if statement.sizes or name != "size"]
    found = {f"replace_{attribute}": replaced(statement, attribute, rng) for attribute in named}
    if len(statement.things) > 1:
        found |= {f"swap_{attribute}": swapped(statement, attribute) for attribute in (*named, "relation")}
    return {rule: lie for rule, lie in found.items() if lie is not None}

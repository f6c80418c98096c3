import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_embedder import GREEDY, WritesCaptions
from tiny import save_tiny, write_tiny_cases, write_tiny_shards

from vlm.charts import number
from vlm.distributed import Topology
from vlm.evaluation import (
    Captioning,
    CaptionsFromCoco,
    CaptionsFromShards,
    CasesFromFiles,
    CasesFromShards,
    ClassesFromShards,
    Compositional,
    FewShotRidge,
    ImageRetrieval,
    LinearProbe,
    MultiLabelZeroShot,
    NearestNeighbours,
    PairScoring,
    Result,
    Retrieval,
    ZeroShot,
    run_suite,
    write_report,
    write_results,
)
from vlm.evaluation.report import percent
from vlm.inference import load

VOID = {"meta", "img", "br", "link", "line", "polyline"}


class Writer(WritesCaptions):
    """An embedder that also writes captions, some of which a page has to escape."""

    written = ("a <red> square", "a green square", *["a blue square"] * 6, "")


def captions_of_files(folder: Path) -> CaptionsFromCoco:
    """The first of the pictures of `write_tiny_cases`, with a Chinese and an English caption."""
    content = {
        "images": [{"id": 0, "file_name": "squares/0.png"}],
        "annotations": [{"image_id": 0, "caption": text} for text in ("红色的方块", "a red <square>")],
    }
    (folder / "captions.json").write_text(json.dumps(content), encoding="utf-8")
    return CaptionsFromCoco(str(folder / "captions.json"), str(folder))


class Page(HTMLParser):
    """Tags that are open, what the page would load, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.languages: dict[str, str] = {}
        self.words: list[str] = []
        self.ids: list[str] = []
        self._language = "en"
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            assert values["alt"], "a picture without words for it"
        self.loaded += [str(values[name]) for name in ("src", "srcset", "data", "action") if name in values]
        self.links += [str(values["href"])] if "href" in values else []
        self.ids += [str(values["id"])] if "id" in values else []
        self._language = values.get("lang") or self._language
        assert tag not in {"script", "link", "iframe", "object"}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.words.append(data.strip())
            self.languages[data.strip()] = self._language


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    run = tmp_path_factory.mktemp("runs") / "a <run>"
    checkpoint = save_tiny(run / "checkpoints" / "step_00000007")
    shards = write_tiny_shards(run / "shards", num_samples=9)
    (run / "metrics.csv").write_text("step,train/loss,eval/x/acc1\n1,4.5,\n2,4.0,0.1\n3,3.0,0.2\n")
    classes = ClassesFromShards(shards, name="json.caption_zh", label="json.colour")
    train, test = f"{run}/shards/00000.tar", f"{run}/shards/00001.tar"
    cases = write_tiny_cases(run / "cases")
    written: dict[str, Any] = {"decoding": GREEDY, "num_examples": 3}
    suite = {
        "names": ZeroShot(shards, classes, label="json.colour", templates=["{c}"]),
        "search": Retrieval(shards, ["txt"], relevance="json.colour"),
        "choice": Compositional(
            CasesFromShards(
                shards, fields={"true_captions": "json.caption_en", "each_false_caption": "json.false"}
            )
        ),
        "files": Compositional(CasesFromFiles(str(cases), str(cases.parent))),
        "captions": Captioning(CaptionsFromShards(shards, "txt"), language="en", **written),
        "coco": Captioning(captions_of_files(cases.parent), language="zh", **written),
        "knn": NearestNeighbours(train, test, label="json.colour", k=3, temperature=0.07),
        "probe": LinearProbe(train, test, label="cls", l2=[1e-4, 1.0], validation_share=0.3, seed=0),
        "similar": ImageRetrieval(shards, None, label="json.colour", recall_at=[1, 5]),
        "gallery": ImageRetrieval(test, train, label="json.colour", recall_at=[1, 5]),
        "several": MultiLabelZeroShot(shards, classes, label="json.colour", templates=["{c}"]),
        "few": FewShotRidge(train, test, label="json.colour", shots=[1], l2=1.0, seeds=[0, 1]),
        "pairs": PairScoring(shards, "json.false", rating=None),
    }
    results = run_suite(suite, Writer(load(run), Topology.current(), batch_size=4, num_workers=0))
    write_results(run / "out", results, checkpoint=checkpoint)
    write_report(run / "out", results, checkpoint=checkpoint, metrics_csv=run / "metrics.csv")
    return run, results


def test_page_is_well_formed_and_loads_nothing(written: tuple[Path, dict[str, Result]]) -> None:
    text = (written[0] / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.loaded) > 10
    assert all(source.startswith("data:image/webp;base64,") for source in page.loaded)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    assert page.links == [f"#{name}" for name in written[1]]
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_page_shows_scores_with_chance_and_all_examples(written: tuple[Path, dict[str, Result]]) -> None:
    run, results = written
    page = Page((run / "out" / "report.html").read_text(encoding="utf-8"))
    words = " ".join(page.words)
    assert page.words.count("a <run>") == 1
    for result in results.values():
        for metric, value in result.metrics.items():
            if metric in result.chance and not metric.endswith("rank"):
                assert f"{percent(value)} chance {percent(result.chance[metric])}" in words, metric
    assert page.languages["红色的正方形"] == "zh"
    assert page.languages["a red square"] == "en"
    assert {"train/loss", "eval/x/acc1"} <= set(page.words)


def test_page_without_curves_or_results_still_stands(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "model")
    path = write_report(tmp_path / "out", {}, checkpoint=checkpoint, metrics_csv=tmp_path / "absent.csv")
    assert Page(path.read_text(encoding="utf-8")).open == []


def test_results_tell_what_was_measured_of_what(written: tuple[Path, dict[str, Result]]) -> None:
    run, results = written
    content = json.loads((run / "out" / "results.json").read_text(encoding="utf-8"))
    assert content["step"] == 7
    assert Path(content["checkpoint"]) == run / "checkpoints" / "step_00000007"
    assert content["model"]["embed_dim"] == 8
    assert content["versions"].keys() == {"evaluated_with", "trained_with"}
    for name, result in results.items():
        notes = {"notes": result.notes} if result.notes else {}
        assert content["results"][name] == {
            "dataset": name,
            "task": result.task,
            "metrics": result.metrics,
            "chance": result.chance,
            "num_samples": result.num_samples,
            **({"text_only": result.text_only} if result.text_only else {}),
            **notes,
        }
    assert content["results"]["probe"]["notes"].keys() == {"num_train", "l2", "validation_acc1"}
    assert content["results"]["similar"]["notes"] == {"num_gallery": 9, "num_left_out": 0}


def test_page_shows_neighbours_the_sweep_and_what_pictures_find(
    written: tuple[Path, dict[str, Result]],
) -> None:
    run, results = written
    text = (run / "out" / "report.html").read_text(encoding="utf-8")
    words = " ".join(Page(text).words)
    probe = results["probe"]
    assert f"linear probe, l2 {probe.notes['l2']:.2g}" in words
    assert "vote of the 3 nearest, temperature 0.07" in words
    assert "4 queries, 5 pictures searched" in words
    (chart,) = (part for part in text.split("<svg")[1:] if "at log10 of l2" in part)
    assert chart[: chart.index("</svg>")].count("<polyline") == 1
    for name in ("knn", "similar", "gallery"):
        section = text[text.index(f'<h2 id="{name}"') :]
        section = section[: section.index("</section>")]
        examples = results[name].details["examples"]
        assert section.count("<img") == sum(1 + len(example["found"]) for example in examples)


def test_page_shows_the_captions_with_their_references(written: tuple[Path, dict[str, Result]]) -> None:
    run, results = written
    text = (run / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.words)
    for name, pictures in (("captions", 6), ("coco", 1)):
        result = results[name]
        section = text[text.index(f'<h2 id="{name}"') :]
        section = section[: section.index("</section>")]
        assert section.count("<img") == pictures
        for example in [row for rows in result.details["examples"].values() for row in rows]:
            assert {example["caption"], *example["references"]} - {""} <= set(page.words)
        assert percent(result.metrics["Bleu_1"]) in words
        assert number(result.metrics["mean_length"]) in page.words
    assert f"{number(results['captions'].metrics['perplexity'])}" in page.words
    assert "1 pictures, 2 references of 4 words METEOR is left out: it has no Chinese" in words
    assert page.languages["红色的方块"] == "zh"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.0 %"), (0.7237, "72.4 %"), (1.0, "100.0 %"), (0.00028, "0.028 %"), (0.0156, "1.6 %")],
)
def test_small_shares_keep_two_digits(value: float, shown: str) -> None:
    assert percent(value) == shown


def test_page_shows_cases_and_groups_with_their_pictures(written: tuple[Path, dict[str, Result]]) -> None:
    run, results = written
    text = (run / "out" / "report.html").read_text(encoding="utf-8")
    words = " ".join(Page(text).words)
    assert "8 pictures, 8 cases left out without a picture: 2" in words
    section = text[text.index('<h2 id="files"') :]
    section = section[: section.index("</section>")]
    examples = results["files"].details["examples"]
    assert {"one", "two", "groups"} == examples.keys()
    rows = [row for outcomes in examples.values() for rows in outcomes.values() for row in rows]
    assert section.count("<img") == sum(len(row.get("found", [0])) for row in rows)
    assert f"{percent(results['files'].text_only['acc'])}" in words

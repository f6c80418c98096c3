from pathlib import Path

import pytest
import torch
from tiny import COLOURS, tiny_loaded, write_tiny_shards

from vlm.distributed import Topology
from vlm.errors import DataError
from vlm.inference import Embedder, Loaded

TEXTS = [f"a {name} square" for name in COLOURS for _ in range(2)] + ["红色的正方形", "a"]


def embedder(loaded: Loaded, *, batch_size: int = 2) -> Embedder:
    return Embedder(
        loaded, Topology.current(), batch_size=batch_size, num_workers=0, bf16=False, progress=False
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), num_samples=13)


def test_vectors_and_records_come_in_the_order_of_the_data(shards: str) -> None:
    loaded = tiny_loaded()
    features, records = embedder(loaded, batch_size=4).images(shards)
    texts, truncated = embedder(loaded, batch_size=4).texts(TEXTS)
    assert [record["key"] for record in records] == [f"{row:06d}" for row in range(13)]
    assert [record["cls"] for record in records] == [row % 4 for row in range(13)]
    with torch.no_grad():
        expected = torch.cat([loaded.model.encode_text(loaded.tokenizer([text])) for text in TEXTS])
    torch.testing.assert_close(texts, expected)
    assert truncated == loaded.tokenizer.count_truncated(TEXTS) / len(TEXTS)
    assert features.shape == (13, 8)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(13))


def test_equal_texts_are_encoded_once_and_have_one_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    rows: list[int] = []
    encode = loaded.model.encode_text
    monkeypatch.setattr(loaded.model, "encode_text", lambda ids: (rows.append(len(ids)), encode(ids))[1])
    vectors = embedder(loaded).texts(TEXTS).features
    assert sum(rows) == len(set(TEXTS))
    assert torch.equal(vectors[0], vectors[1])


def test_the_vector_of_an_ensemble_is_the_mean_of_its_texts() -> None:
    found = embedder(tiny_loaded())
    each = found.texts(TEXTS).features
    ensembles, truncated = found.texts(TEXTS, ensemble=5)
    means = torch.stack([each[:5].mean(dim=0), each[5:].mean(dim=0)])
    torch.testing.assert_close(ensembles, means / means.norm(dim=1, keepdim=True))
    assert truncated == found.texts(TEXTS).truncated


def test_texts_that_are_cut_are_counted_as_often_as_they_come() -> None:
    long = "a very long text " * 9
    assert embedder(tiny_loaded()).texts([long, "a", long, "b"]).truncated == 0.5


def test_a_data_set_is_read_once_for_evaluations_in_turn(shards: str) -> None:
    found = embedder(tiny_loaded())
    assert found.images(shards) is found.images([shards])


def test_two_data_sets_are_remembered_and_no_third(shards: str) -> None:
    found = embedder(tiny_loaded())
    one, two, three = (shards.replace("*", f"0000{number}") for number in range(3))
    first, second = found.images(one), found.images(two)
    assert found.images(one) is first
    assert found.images(two) is second
    third = found.images(three)
    assert found.images(two) is second
    assert found.images(one) is not first
    assert found.images(three) is not third  # `one` took its place


def test_every_module_keeps_its_own_mode(shards: str) -> None:
    loaded = tiny_loaded()
    loaded.model.train()
    loaded.model.text.eval()
    before = [module.training for module in loaded.model.modules()]
    embedder(loaded).images(shards)
    assert [module.training for module in loaded.model.modules()] == before
    assert {True, False} == set(before)


def test_what_a_module_keeps_from_an_embedding_still_serves_training(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded()
    kept: list[torch.Tensor] = []
    encode = loaded.model.encode_image

    def encode_and_keep(image: torch.Tensor) -> torch.Tensor:
        kept.append(loaded.model.logit_scale * 2)  # as a sharded model keeps what it gathers
        return encode(image)

    monkeypatch.setattr(loaded.model, "encode_image", encode_and_keep)
    embedder(loaded).images(shards)
    assert not kept[0].requires_grad
    (kept[0] * loaded.model.logit_scale).sum().backward()


def test_shards_that_match_nothing_are_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shards"):
        embedder(tiny_loaded()).images(str(tmp_path / "*.tar"))

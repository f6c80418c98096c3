"""Hidden patches that are rebuilt, and their pictures."""

import numpy as np
import pytest
import torch
from generative import writer
from tiny import tiny_loaded

from vlm.errors import ConfigError
from vlm.inference.rebuild import Rebuilder
from vlm.models import patchify, unpatchify

CAPTIONS = ["a red square", "a blue square", "a grey square", "蓝色的正方形"]


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)


def test_patches_come_back_as_the_image() -> None:
    image = torch.randn(2, 3, 12, 20)
    patches = patchify(image, 4)
    assert patches.shape == (2, 15, 48)
    assert torch.equal(patches[0, 6], image[0, :, 4:8, 4:8].flatten())
    assert torch.equal(unpatchify(patches, (3, 5)), image)


def test_the_pictures_differ_where_patches_were_hidden_and_errors_are_theirs() -> None:
    rebuilder = Rebuilder(writer(), share=0.5, normalise=False)
    found = rebuilder(images(), CAPTIONS, CAPTIONS[::-1], shown=[True, False, True, False])
    assert [one.pictures is None for one in found] == [False, True, False, True]
    std = np.array([0.2, 0.25, 0.3])
    for row in (0, 2):
        pictures = found[row].pictures
        assert pictures is not None
        original = images()[row].permute(1, 2, 0).numpy()
        assert np.abs(pictures.original.astype(int) - original).max() <= 1
        changed = (pictures.masked != pictures.original).any(2).reshape(4, 4, 4, 4).any((1, 3))
        assert changed.sum() == 8
        same = ~np.kron(changed, np.ones((4, 4), bool))
        assert (pictures.rebuilt[same] == pictures.original[same]).all()
        assert (pictures.rebuilt != pictures.under_other).any()
        # A rebuilt picture that was clipped nowhere says what the error is.
        hidden = ~same
        difference = (pictures.rebuilt.astype(float) - pictures.original)[hidden] / 255 / std
        assert found[row].error == pytest.approx((difference**2).mean(), rel=0.05)


def test_the_same_text_twice_has_the_same_error() -> None:
    found = Rebuilder(writer(), share=0.5, normalise=True)(images(), CAPTIONS, CAPTIONS, shown=[False] * 4)
    assert all(one.error == one.error_under_other for one in found)


def test_a_model_without_an_image_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no image decoder \(model\.image_decoder=null\)"):
        Rebuilder(tiny_loaded(), share=0.5, normalise=True)

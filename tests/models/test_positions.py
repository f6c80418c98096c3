import pytest
import torch
from torch.nn import functional as F

from vlm.models.positions import resized_grid, resized_row


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_a_grid_is_resized_in_two_dimensions_and_the_class_token_is_kept(prefix: int) -> None:
    positions = torch.randn(1, prefix + 16, 6)
    resized = resized_grid(positions, length=prefix + 49, num_prefix_tokens=prefix)
    assert resized is not None
    assert torch.equal(resized[:, :prefix], positions[:, :prefix])
    picture = positions[:, prefix:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    expected = F.interpolate(picture, size=(7, 7), mode="bicubic", antialias=True)
    torch.testing.assert_close(resized[:, prefix:].reshape(1, 7, 7, 6), expected.permute(0, 2, 3, 1))


def test_a_gradient_over_the_image_stays_a_gradient() -> None:
    row = torch.linspace(0, 1, 8)
    positions = row.expand(8, 8).reshape(1, 64, 1)
    resized = resized_grid(positions, length=256, num_prefix_tokens=0)
    assert resized is not None
    columns = resized.reshape(16, 16)
    assert torch.allclose(columns, columns[0].expand(16, 16), atol=1e-6)
    assert (columns[0].diff() > 0).all()


@pytest.mark.parametrize(("old", "new"), [(15, 49), (16, 48), (0, 16)])
def test_what_is_no_square_grid_is_left_to_the_table_of_mismatches(old: int, new: int) -> None:
    assert resized_grid(torch.randn(1, 1 + old, 6), length=1 + new, num_prefix_tokens=1) is None


def test_a_shorter_context_keeps_the_first_positions() -> None:
    positions = torch.randn(12, 6)
    assert torch.equal(resized_row(positions, length=5), positions[:5])


def test_a_longer_context_is_stretched_linearly() -> None:
    positions = torch.arange(4.0)[:, None] * torch.tensor([[1.0, -2.0]])
    resized = resized_row(positions, length=8)
    assert resized.shape == (8, 2)
    # Centres of 8 cells on an axis of 4, the outermost held.
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(resized, expected[:, None] * torch.tensor([[1.0, -2.0]]))

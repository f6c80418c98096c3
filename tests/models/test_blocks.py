"""A tower's repeated parts."""

from torch import nn

from vlm.models import blocks_of


def test_blocks_are_the_outermost_stacks() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    tower = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
            "encoder": nn.ModuleDict({"blocks": nn.ModuleList([block(), block()])}),
        }
    )
    assert list(blocks_of(tower)) == list(tower["encoder"]["blocks"])  # type: ignore[index]

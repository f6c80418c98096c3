import torch
from torch import Tensor, nn

from vlm.models import Cache
from vlm.models.transformer import CrossBlock


def test_of_a_memory_that_stays_the_same_all_is_computed_once() -> None:
    torch.manual_seed(0)
    block = CrossBlock(width=16, memory_width=12, heads=2, activation=nn.GELU()).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x, memory = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    calls: list[nn.Module] = []

    def count(module: nn.Module, *_: Tensor) -> None:
        calls.append(module)

    for part in (block.ln_1_kv, block.attn.kv_proj):
        part.register_forward_hook(count)
    cache = Cache(3)
    parts = [block(x[:, place : place + 1], memory, cache=cache) for place in range(3)]
    assert calls == [block.ln_1_kv, block.attn.kv_proj]
    torch.testing.assert_close(torch.cat(parts, dim=1), block(x, memory), rtol=0, atol=1e-12)

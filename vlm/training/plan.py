"""What a step of a run would take, before anything is started or written."""

from collections.abc import Mapping

from vlm.data.tokenizers import BpeTokenizerRecipe
from vlm.models import ModelSpec, TowerCost, tower_costs
from vlm.training.agreement import check_decoders, check_held, check_taught
from vlm.training.init_from import InitFrom
from vlm.training.recipe import Run, Trainer

FLOAT, HALF = 4, 2
MIB, GIGA = 2**20, 10**9
SPREAD: Mapping[str, frozenset[str]] = {
    "ddp": frozenset(),
    "fsdp2": frozenset({"weights", "gradients", "optimizer", "average"}),
    "deepspeed_zero1": frozenset({"optimizer"}),
    "deepspeed_zero2": frozenset({"gradients", "optimizer"}),
    "deepspeed_zero3": frozenset({"weights", "gradients", "optimizer"}),
}
"""What each strategy divides among ranks."""


def plan(run: Run) -> str:
    """Parameters, memory of a rank by part, bytes received in a step, operations for a sample.

    Activations are what autograd keeps of 4 rows less what it keeps of 2, in float32 and on no device, times
    half the rows; with trainer.activation_checkpointing inputs of blocks and one whole block. Compiled towers
    keep less. Fragments and buffers of libraries come on top.

    Raises:
        ConfigError: a tower cannot be built, the batch cannot be divided among the ranks, or the strategy
            cannot hold what the run keeps.
    """
    check_held(run)
    check_taught(run)
    check_decoders(run)
    world_size, node_size = run.trainer.world_size, run.trainer.ranks_per_node
    run.data.check_world_size(world_size)
    pairs = run.data.global_batch_size // world_size
    rows = min(pairs, run.trainer.micro_batch_size or pairs)
    spec, length = planned_spec(run), run.tokenizer.context_length if run.tokenizer else 0
    checkpointing = run.trainer.activation_checkpointing
    towers = dict(tower_costs(spec, text_length=length, activation_checkpointing=checkpointing))
    sources = (run.data.train, *run.data.mix.values())
    negatives = max(source.num_negatives for source in sources)
    if negatives:
        towers["text"] = towers["text"].times(1 + negatives)
    loss = run.objective.cost(
        pairs=pairs,
        dim=spec.embed_dim,
        world_size=world_size,
        node_size=node_size,
        labels=run.data.train.labels_per_sample or 1,
        negatives=negatives,
    )
    parameters = sum(tower.parameters for tower in towers.values())
    memory = _memory(run, parameters, world_size) | {"activations": _activations(run, towers, rows)}
    received = _parameter_traffic(run.trainer, parameters, world_size, parts=-(-pairs // rows))
    traffic = {"gradients and weights": received}
    flops = {_named(name): 3 * tower.forward_flops for name, tower in towers.items()}
    if run.objective.needs_teacher:
        flops |= {"teacher": sum(tower.forward_flops for tower in towers.values())}
    if again := _flops_again(towers, in_parts=rows < pairs):
        flops |= {"computed again": again}
    if loss is not None:
        memory |= {f"logits ({loss.implementation})": loss.logits_bytes}
        memory |= {"gathered features": loss.gathered_bytes}
        memory |= {"class centres": loss.centres_bytes} if loss.centres_bytes else {}
        traffic |= {"loss": loss.traffic_bytes}
        flops |= {"loss": loss.flops // pairs}
    said = f"{1 + negatives} texts a pair" if negatives else "texts"
    counts = {name.replace("_", " "): tower.parameters for name, tower in towers.items()}
    return "\n".join(
        [
            f"{run.data.global_batch_size} pairs a step on {world_size} ranks, {pairs} on each, towers see "
            f"{rows} at once" + (f"; {said} of {length} tokens, the most there can be" if length else ""),
            *_block("parameters, millions", counts, 10**6),
            *_block("memory of a rank, MiB", memory, MIB),
            *_block("received by a rank in a step, MiB", traffic, MIB),
            *_block("a sample, GFLOP forward and backward", flops, GIGA),
        ]
    )


def planned_spec(run: Run) -> ModelSpec:
    """The model with a vocabulary; that of a BPE to be trained is as large as it may become."""
    if run.tokenizer is None or run.model.text is None:
        return run.model
    init = run.init_from and InitFrom(run.init_from, resize_positions=run.resize_positions)
    if init and init.has_text:
        tokenizer = init.tokenizer(run.tokenizer.context_length)
    elif isinstance(run.tokenizer, BpeTokenizerRecipe):
        size = run.tokenizer.vocab_size
        return run.model.with_tokenizer(vocab_size=size, eot_id=run.model.text.eot_id or size - 1)
    else:
        tokenizer = run.tokenizer.build(lambda limit: ())
    return run.model.with_tokenizer(vocab_size=tokenizer.vocab_size, eot_id=tokenizer.eot_id)


def _named(part: str) -> str:
    return part.replace("_", " ") if part.endswith("decoder") else f"{part} tower"


def _memory(run: Run, parameters: int, world_size: int) -> dict[str, int]:
    """Of the weights and what goes with them: two moments in AdamW, DeepSpeed's own float32 weights, and an
    average if asked for."""
    strategy, inside = run.trainer.strategy, _tower_float(run.trainer)
    # With stage 3 in float32 these are the weights themselves.
    copy = FLOAT if strategy in ("deepspeed_zero1", "deepspeed_zero2") or inside == HALF else 0
    spread = SPREAD[strategy]
    whole = {"weights": inside, "gradients": inside, "optimizer": 2 * FLOAT + copy}
    if run.trainer.ema_decay is not None:
        whole["average"] = FLOAT
    return {name: parameters * size // (world_size if name in spread else 1) for name, size in whole.items()}


def _activations(run: Run, towers: Mapping[str, TowerCost], rows: int) -> int:
    kept = sum(tower.activation_bytes for tower in towers.values())
    kept = rows * (kept + max(tower.recomputed_bytes for tower in towers.values()))
    return kept if run.trainer.precision == "32-true" else kept // 2


def _flops_again(towers: Mapping[str, TowerCost], *, in_parts: bool) -> int:
    """Of blocks in the backward, and of micro-batches, whose vectors a first forward gave to the loss."""
    return sum(t.recomputed_flops + (t.forward_flops if in_parts else 0) for t in towers.values())


def _tower_float(trainer: Trainer) -> int:
    """Bytes of a weight, and of its gradient, in the towers."""
    half = trainer.precision == "bf16-mixed" and trainer.strategy.startswith("deepspeed")
    return HALF if half else FLOAT


def _parameter_traffic(trainer: Trainer, parameters: int, world_size: int, *, parts: int) -> int:
    """Bytes of weights gathered and of gradients reduced, for a step in so many micro-batches."""
    weight = FLOAT if trainer.precision == "32-true" else HALF
    # Forward and backward; of several micro-batches each goes forward once more, for the loss of them all.
    gathers = 2 if parts == 1 else 3 * parts
    # An all-reduce is a scatter and a gather. DeepSpeed reduces its buckets so even where it keeps a share.
    received = {
        "ddp": 2 * FLOAT,
        "fsdp2": gathers * weight + parts * FLOAT,
        "deepspeed_zero1": 2 * weight + weight,
        "deepspeed_zero2": parts * 2 * weight + weight,
        "deepspeed_zero3": gathers * weight + parts * weight,
    }
    return received[trainer.strategy] * parameters * (world_size - 1) // world_size


def _block(title: str, parts: Mapping[str, int], unit: int) -> list[str]:
    lines = {**parts, "together": sum(parts.values())}
    return ["", title, *(f"  {name:<26}{value / unit:>14,.3f}" for name, value in lines.items())]

"""Whether the parts of a run fit each other."""

import logging

from torch import nn

from vlm.data.tokenizers import Tokenizer
from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.models.spec import DECODERS
from vlm.training.engines import AVERAGE, check_holds
from vlm.training.recipe import Run

log = logging.getLogger(__name__)


def check_batch_norm(run: Run, model: nn.Module) -> None:
    """Refuse micro-batches where a tower takes statistics over the rows that it sees at once."""
    size = run.trainer.micro_batch_size
    if size is None or size >= run.data.global_batch_size // Topology.current().world_size:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"trainer.micro_batch_size={size} with batch normalisation in {name}: its statistics would "
                "be those of micro-batches; set it to null, or take another norm, as by "
                "model.image.options.norm_layer=groupnorm1"
            )


def check_best(run: Run) -> None:
    """The metric that picks the best checkpoint must come from an evaluation of this run."""
    best = run.checkpoint.keep_best
    if best is None or best.startswith(tuple(f"eval/{name}/" for name in run.evaluators)):
        return
    names = ", ".join(f"eval/{name}/..." for name in run.evaluators) or "none, as there is no suite"
    raise ConfigError(f"checkpoint.keep_best={best} is no metric of this run; there are {names}")


def check_freeze(run: Run) -> None:
    towers = ["image", *(["text"] if run.model.text else [])]
    if run.freeze is not None and run.freeze not in towers:
        raise ConfigError(f"freeze={run.freeze!r} is no tower of this model; there is {' and '.join(towers)}")
    if [run.freeze] == towers:
        raise ConfigError(f"freeze={run.freeze} leaves nothing to train, as model.text=null")


def check_frozen_weights(run: Run) -> None:
    """A tower that is to stay as it is has to come from somewhere, in a run that begins."""
    if run.freeze is None or run.init_from is not None:
        return
    tower = run.model.image if run.freeze == "image" else run.model.text
    if not getattr(tower, "pretrained", False):
        raise ConfigError(
            f"freeze={run.freeze} would keep random weights; name a run or a checkpoint by init_from, or set "
            f"model.{run.freeze}.pretrained"
        )


def check_taught(run: Run) -> None:
    """What the objective learns from beside images and captions must be there, and be looked at.

    Raises:
        ConfigError: it has no teacher, or one that forgets; or hard negatives are missing, or ignored.
    """
    negatives = [s.negatives for s in (run.data.train, *run.data.mix.values()) if s.negatives is not None]
    if "negative_text" in run.objective.required_keys and not negatives:
        raise ConfigError(
            "the objective needs hard negatives, but data.train.negatives=null; make some by vlm negatives "
            "and name them, as data.train.negatives=negatives"
        )
    if negatives and not run.objective.takes_negatives:
        raise ConfigError(
            f"data.train.negatives={negatives[0]}, but the objective does not look at hard negatives; set it "
            "to null, or take objective=degla or objective=negclip"
        )
    if run.objective.needs_teacher:
        _check_teacher(run)


def _check_teacher(run: Run) -> None:
    trainer = run.trainer
    check_holds(trainer.strategy, AVERAGE, setting="an objective with a teacher, the average of the weights,")
    if trainer.ema_decay is None:
        raise ConfigError(
            "the objective has a teacher, which is the average of the weights, but trainer.ema_decay=null; "
            "set trainer.ema_decay=0.9996 and trainer.ema_warmup=false, or its weights to 0"
        )
    if trainer.ema_warmup:
        raise ConfigError(
            "trainer.ema_warmup=true lets the average forget the weights that the run begins with, which the "
            "objective's teacher is to remember; set trainer.ema_warmup=false"
        )
    towers = [run.model.image, *([run.model.text] if run.model.text else [])]
    pretrained = all(getattr(tower, "pretrained", False) for tower in towers)
    if run.init_from is None and not pretrained and not run.resume:
        log.warning("the teacher remembers random weights: init_from=null and the towers are not pretrained")


def check_decoders(run: Run) -> None:
    """The model must have the decoders that the objective trains, and no others.

    Raises:
        ConfigError: naming one that is missing, or that nothing would train.
    """
    for name in DECODERS:
        there, asked = getattr(run.model, name) is not None, name in run.objective.decoders
        if asked and not there:
            raise ConfigError(
                f"the objective trains a decoder, but model.{name}=null; take a model with one, as "
                "model=sycoca_toy or model=coca_vit_b32, or set the weight of its term to 0"
            )
        if there and not asked:
            raise ConfigError(
                f"model.{name} is a decoder that the objective does not train; set model.{name}=null, or "
                "take objective=coca or objective=sycoca with weights above 0"
            )


def check_start_token(run: Run, tokenizer: Tokenizer) -> None:
    """A caption is written from a token that begins every text.

    Raises:
        ConfigError: the tokenizer has none, and there is a decoder.
    """
    if run.objective.decoders and tokenizer.bot_id is None:
        raise ConfigError(
            "the objective trains a decoder, which needs a token that begins every text, and this tokenizer "
            "has none; take tokenizer=bpe or tokenizer=clip"
        )


def check_held(run: Run) -> None:
    """What the run keeps beside weights and optimizer must be something that its strategy can hold.

    Raises:
        ConfigError: naming what asks for it, and strategies that would do.
    """
    decay = run.trainer.ema_decay
    if decay is not None:
        check_holds(run.trainer.strategy, AVERAGE, setting=f"trainer.ema_decay={decay}")
    elif run.evaluation.weights == "ema":
        raise ConfigError(
            "evaluation.weights=ema, but trainer.ema_decay=null: there is no average of weights; set it, say "
            "to 0.9999, or evaluation.weights=model"
        )


def check_sizes(run: Run) -> None:
    """What the data give must fit what the towers take."""
    if (run.tokenizer is None) != (run.model.text is None):
        raise ConfigError("images alone need both tokenizer=none and model.text=null, and texts neither")
    if run.tokenizer and run.model.text and run.tokenizer.context_length > run.model.text.context_length:
        raise ConfigError(
            f"tokenizer.context_length={run.tokenizer.context_length} exceeds "
            f"model.text.context_length={run.model.text.context_length}"
        )
    if run.data.preprocess.image_size != run.model.image.image_size:
        raise ConfigError(
            f"data.preprocess.image_size={run.data.preprocess.image_size} is not "
            f"model.image.image_size={run.model.image.image_size}; set the latter alone"
        )

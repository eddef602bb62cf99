"""What is trained, what is frozen, and which modules drop out."""

import pytest
import torch
from torch import nn

from tests.training.toy import toy_trainee
from vpgtrans.errors import RecipeError, TrainingError
from vpgtrans.training.guards import frozen_checksum
from vpgtrans.training.trainable import current_modes, freeze, set_trainable, trained_names


def requiring_grad(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def in_train_mode(module: nn.Module) -> set[str]:
    return {name for name, child in module.named_modules() if child.training}


def test_projector_alone_is_the_exact_trainable_set():
    trainee = toy_trainee()
    set_trainable(trainee.module, trainee.parts, {"projector"})
    assert requiring_grad(trainee.module) == {"projector.weight", "projector.bias"}
    assert in_train_mode(trainee.module) == {"projector"}


def test_vpg_parts_train_with_their_dropout_and_the_rest_does_not():
    trainee = toy_trainee()
    set_trainable(trainee.module, trainee.parts, {"qformer", "query_tokens", "projector"})
    assert requiring_grad(trainee.module) == {
        "query_tokens", "qformer.0.weight", "qformer.0.bias", "qformer.3.weight", "qformer.3.bias",
        "projector.weight", "projector.bias",
    }  # fmt: skip
    # the parameterless GELU and dropout inside the trained Q-Former follow it, the LLM's dropout does not
    assert in_train_mode(trainee.module) == {
        "qformer", "qformer.0", "qformer.1", "qformer.2", "qformer.3", "projector",
    }  # fmt: skip


def test_a_bare_parameter_leaves_its_owner_in_eval_mode():
    trainee = toy_trainee()
    set_trainable(trainee.module, trainee.parts, {"query_tokens"})
    assert requiring_grad(trainee.module) == {"query_tokens"}
    assert in_train_mode(trainee.module) == set()


def test_setting_twice_forgets_the_first():
    trainee = toy_trainee()
    set_trainable(trainee.module, trainee.parts, {"qformer"})
    set_trainable(trainee.module, trainee.parts, {"projector"})
    assert requiring_grad(trainee.module) == {"projector.weight", "projector.bias"}
    assert in_train_mode(trainee.module) == {"projector"}


def test_modes_undo_a_bare_train_call():
    trainee = toy_trainee()
    set_trainable(trainee.module, trainee.parts, {"projector"})
    modes = current_modes(trainee.module)
    trainee.module.train()
    assert "llm.2" in in_train_mode(trainee.module)  # the trap: the frozen LLM drops out
    modes.apply()
    assert in_train_mode(trainee.module) == {"projector"}


def test_unknown_part_lists_those_there_are():
    trainee = toy_trainee()
    with pytest.raises(
        RecipeError, match="no part 'qfromer' to train; its parts are projector, qformer, query"
    ):
        set_trainable(trainee.module, trainee.parts, {"qfromer"})


def test_part_without_parameters_or_with_a_stale_name_is_an_error():
    trainee = toy_trainee()
    with pytest.raises(TrainingError, match="part 'empty' cannot be trained: it has no parameters"):
        trained_names(trainee.module, {"empty": ()}, {"empty"})
    with pytest.raises(TrainingError, match="the module has no parameter 'projector.gain'"):
        trained_names(trainee.module, {"projector": ("projector.gain",)}, {"projector"})


def test_an_unsettable_gradient_flag_is_noticed(monkeypatch):
    trainee = toy_trainee()
    monkeypatch.setattr(nn.Parameter, "requires_grad_", lambda self, flag=True: self)
    with pytest.raises(TrainingError, match="the trainable set is not the one asked for: llm.0.bias"):
        set_trainable(trainee.module, trainee.parts, {"projector"})


def test_table_counts_every_parameter_once():
    trainee = toy_trainee()
    rows = set_trainable(trainee.module, trainee.parts, {"projector"}, {"projector": 5e-4})
    by_part = {row.part: row for row in rows}
    assert list(by_part) == [
        "vision_encoder",
        "vision_norm",
        "query_tokens",
        "qformer",
        "projector",
        "(rest)",
    ]
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in trainee.module.parameters())
    projector, rest = by_part["projector"], by_part["(rest)"]
    assert (projector.parameters, projector.trainable, projector.dtype) == (8 * 5 + 5, True, "float32")
    assert (projector.learning_rate, rest.learning_rate, rest.trainable) == (5e-4, None, False)


def test_table_names_mixed_dtypes():
    trainee = toy_trainee()
    trainee.module.llm[0].bfloat16()
    rows = set_trainable(trainee.module, trainee.parts, {"projector"})
    assert rows[-1].dtype == "bfloat16/float32"


def test_freeze_leaves_nothing_to_train():
    trainee = toy_trainee()
    set_trainable(trainee.module, trainee.parts, {"projector"})
    trainee.module.projector.weight.grad = torch.ones(5, 8)
    freeze(trainee.module)
    assert requiring_grad(trainee.module) == in_train_mode(trainee.module) == set()
    assert trainee.module.projector.weight.grad is None


def test_checksum_covers_frozen_weights_and_buffers_but_not_trained_ones():
    trainee = toy_trainee()
    names = trained_names(trainee.module, trainee.parts, {"projector"})
    before = frozen_checksum(trainee.module, names)
    with torch.no_grad():
        trainee.module.projector.weight.add_(1)
        assert frozen_checksum(trainee.module, names) == before
        trainee.module.llm[3].bias[7] += 1e-6
        after_weight = frozen_checksum(trainee.module, names)
        trainee.module.llm.positions[0] += 1
    assert len({before, after_weight, frozen_checksum(trainee.module, names)}) == 3

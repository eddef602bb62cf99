"""FLOPs against formulas derived by hand, against torch's own count of the real loop, and layer by layer."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import save_tiny_blip2, save_tiny_llm
from tests.vlm.batches import causal_batch, seq2seq_batch
from vpgtrans.cost.layers import equal_stacks, tally_layers
from vpgtrans.cost.system import System, ported_system
from vpgtrans.cost.tally import tally
from vpgtrans.cost.work import Work, cost_of_pass, sizes_of
from vpgtrans.training.trainable import set_trainable
from vpgtrans.vlm.assemble import assemble_port
from vpgtrans.vlm.forward import Trainee
from vpgtrans.weights.locate import locate_model

VISION = {
    "model_type": "blip_2_vision_model", "hidden_size": 128, "intermediate_size": 512,
    "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
}  # fmt: skip
QFORMER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000,
}  # fmt: skip
FINE = frozenset({"qformer", "query_tokens", "vision_norm", "projector"})


def system(**changes) -> System:
    values = {"name": "s", "llm": LLAMA, "vision": VISION, "qformer": QFORMER, "image_tokens": 8}
    return System(**{**values, **changes})


def llm_matrices() -> int:
    """Weights of the body's matrix products."""
    return 6 * (4 * 256 * 256 + 3 * 256 * 700)


@pytest.mark.parametrize(("trained", "factor"), [({"projector"}, 4), ({"projector", "llm"}, 6)])
def test_a_dense_decoder_costs_4n_frozen_and_6n_trained(trained: set[str], factor: int) -> None:
    work = Work(pairs=2, images=2, text_tokens=8, logit_tokens=6, trained=frozenset(trained))
    counted = cost_of_pass(system(), work).parts["LLM"].flops
    by_hand = factor * (2 * 16 * llm_matrices() + 2 * 6 * 256 * 1000)
    assert counted == pytest.approx(by_hand, rel=0.02)


def test_checkpointing_costs_one_more_forward() -> None:
    plain = Work(2, 2, 8, 6, frozenset({"projector", "llm"}))
    again = Work(2, 2, 8, 6, frozenset({"projector", "llm"}), checkpointing=True)
    difference = (
        cost_of_pass(system(), again).parts["LLM"].flops - cost_of_pass(system(), plain).parts["LLM"].flops
    )
    # the last product of a layer is not needed again, so torch stops before it
    assert 0.65 < difference / (2 * 2 * 16 * llm_matrices()) <= 1.02
    lighter = cost_of_pass(system(), again).parts["LLM"].peak_bytes
    assert lighter < cost_of_pass(system(), plain).parts["LLM"].peak_bytes


def test_a_frozen_vit_costs_two_flops_a_weight_and_token() -> None:
    counted = cost_of_pass(system(), Work(3, 3, 8, 6)).parts["frozen vision encoder"].flops
    tokens, width = 17, 128
    matrices = 5 * (4 * width**2 + 2 * width * 512)
    attention = 5 * 2 * 2 * tokens**2 * width
    patches = 2 * 16 * 3 * 14 * 14 * width
    assert counted == pytest.approx(3 * (2 * tokens * matrices + attention + patches), rel=0.05)
    trained = Work(3, 3, 8, 6, frozenset({"vision_encoder", "projector"}))
    whole = cost_of_pass(system(), trained).parts["vision encoder"].flops
    assert whole == pytest.approx(3 * counted, rel=0.05)


def test_a_trained_qformer_costs_six_flops_a_weight_and_token() -> None:
    parts = cost_of_pass(system(), Work(2, 2, 8, 6, FINE)).parts
    width, queries, patches = 96, 8, 17
    own = 4 * (4 * width**2 + 2 * width * 384) + 2 * 2 * width**2
    cross = 2 * 2 * 128 * width
    attention = 2 * 2 * width * (4 * queries**2 + 2 * queries * patches)
    projector = width * 256
    by_hand = 2 * (6 * queries * (own + projector) + 4 * patches * cross + 3 * attention)
    # image features get no gradient of their own, so the cross keys and values cost four, not six
    # (the norm before them is trained: six)
    by_hand += 2 * 2 * patches * cross
    assert parts["Q-Former and projector"].flops == pytest.approx(by_hand, rel=0.05)


def test_a_warm_up_runs_the_qformer_forward_only() -> None:
    warm = cost_of_pass(system(), Work(2, 2, 8, 6, frozenset({"projector"}))).parts["Q-Former and projector"]
    fine = cost_of_pass(system(), Work(2, 2, 8, 6, FINE)).parts["Q-Former and projector"]
    assert 2.5 < fine.flops / warm.flops < 3.2
    assert cost_of_pass(system(), Work(2, 2, 8, 6, FINE)).trained_parameters == sizes_of(system()).trained(
        FINE
    )


@pytest.mark.parametrize("target", ["llama", "gemma3_text", "opt", "t5"])
@pytest.mark.parametrize("trained", [frozenset({"projector"}), FINE], ids=["warm-up", "fine-tune"])
def test_the_sum_of_the_parts_is_the_real_loop(tmp_path, target: str, trained: frozenset[str]) -> None:
    source = locate_model(str(save_tiny_blip2(tmp_path / "vlm")))
    llm = locate_model(str(save_tiny_llm(tmp_path / "llm", target, hidden=48)))
    ported = assemble_port(source, llm, torch.float32)
    ported.model.set_attn_implementation("eager")
    rows = [[20, 21, 22, 23, 24], [30, 31, 32]]
    if target == "t5":
        batch, texts, places = seq2seq_batch(ported, rows, [[5, 6, 7], [8, 9]], [0, 1]), 5, 3
    else:
        # as many supervised tokens in both texts: the head reads exactly those
        batch, texts, places = causal_batch(ported, rows, [3, 1], [0, 1]), 6, 2
    trainee = Trainee(ported, "off")  # plain rows: what `Work` describes here
    set_trainable(trainee.module, trainee.parts, trained)
    with FlopCounterMode(display=False) as real:
        loss, _ = trainee.loss(batch)
        loss.backward()
    config = {**llm.config(), "attn_implementation": "eager"}
    one = ported_system(source.config(), config, "tiny")
    vision, qformer = ({**part, "attn_implementation": "eager"} for part in (one.vision, one.qformer or {}))
    one = System(**{**vars(one), "vision": vision, "qformer": qformer, "llm_dtype": "float32"})
    counted = cost_of_pass(one, Work(2, 2, texts, places, trained)).total.flops
    assert counted == pytest.approx(real.get_total_flops(), rel=0.02)


def test_one_and_two_layers_tell_the_rest() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict(
            {"layers": nn.ModuleList(nn.Linear(32, 32) for _ in range(9)), "head": nn.Linear(32, 5)}
        )
    x = torch.empty(4, 32, device="meta")

    def run() -> None:
        y = x
        for layer in model["layers"]:
            y = layer(y)
        model["head"](y)

    assert [period for _, period in equal_stacks(model)] == [1]
    short, whole = tally_layers(model, run), tally(run)
    assert short.flops == whole.flops == 2 * 4 * (9 * 32 * 32 + 32 * 5)
    assert short.bytes_moved == whole.bytes_moved
    assert len(model["layers"]) == 9


def stack_of(widths: list[int]) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(8, 8, bias=width > 0) for width in widths)})


def test_layers_that_differ_are_all_counted() -> None:
    assert equal_stacks(stack_of([1, 1, 0, 1, 0, 0, 1])) == []
    assert equal_stacks(stack_of([1, 1, 1])) == []  # too few to be worth it


def test_layers_that_take_turns_are_counted_by_their_turns() -> None:
    model = stack_of([1, 0] * 6)
    assert [period for _, period in equal_stacks(model)] == [2]
    x = torch.empty(4, 8, device="meta")

    def run() -> None:
        y = x
        for layer in model["layers"]:
            y = layer(y)

    assert tally_layers(model, run).ops == tally(run).ops


def test_a_first_layer_of_its_own_is_counted_once() -> None:
    model = stack_of([0, 1, 1, 1, 1, 1])
    assert [period for _, period in equal_stacks(model)] == [1]


def test_low_rank_additions_are_counted_as_they_are() -> None:
    """What PEFT's LoRA does, by hand: a frozen matrix and two trained thin ones beside it."""
    with torch.device("meta"):
        frozen, down, up = (
            nn.Linear(64, 64, bias=False),
            nn.Linear(64, 4, bias=False),
            nn.Linear(4, 64, bias=False),
        )
    frozen.requires_grad_(False)
    x = torch.empty(10, 64, device="meta", requires_grad=True)
    counted = tally(lambda: torch.autograd.backward((frozen(x) + up(down(x))).sum()))
    assert counted.flops == 2 * 10 * (2 * 64 * 64 + 3 * (64 * 4 + 4 * 64))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_counted_by_how_many_answer(kind: str) -> None:
    def flops(active: int) -> int:
        config = {**LLAMA, "model_type": kind, "num_hidden_layers": 2, "moe_intermediate_size": 700,
                  "num_local_experts": 8, "num_experts": 8, "num_experts_per_tok": active}  # fmt: skip
        return cost_of_pass(system(llm=config), Work(1, 1, 8, 4)).parts["LLM"].flops

    one_expert = 2 * 16 * 4 * 3 * 256 * 700
    assert flops(3) - flops(2) == pytest.approx(one_expert, rel=0.1)


def test_peak_bytes_follow_the_lifetimes() -> None:
    def run() -> None:
        first = torch.empty(1000, device="meta") + 1
        second = first * 2
        del first
        third = second + 1
        del second, third

    # never more than two of the three at a time, beside the first line's own operand
    assert 8000 <= tally(run).peak_bytes <= 12000

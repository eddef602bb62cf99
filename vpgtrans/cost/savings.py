"""What each way of not computing something twice saves, one row each.

N soft-prompt tokens, t text tokens, K texts of one image: apart, the LLM reads K (N + t) tokens; with a
shared prefix N + K t. Its body costs a a token and b a pair of tokens in attention; three counts tell both.
"""

from dataclasses import dataclass, replace

from vpgtrans.cost.memory import without_cache, work_of
from vpgtrans.cost.plan import StagePlan
from vpgtrans.cost.system import System
from vpgtrans.cost.work import cost_of_pass, whole_logits


@dataclass(frozen=True)
class Saving:
    """FLOPs of a stage with and without one saving."""

    name: str
    state: str
    """``on``, ``off`` or why it does not apply."""
    without: float
    with_it: float

    @property
    def share(self) -> float:
        """Share of the FLOPs that it saves."""
        return 1 - self.with_it / self.without if self.without else 0.0


def savings_of(system: System, plan: StagePlan) -> list[Saving]:
    """Return the savings of a stage: caching, prefix sharing, supervised-only logits."""
    micro = plan.micro_batch
    passes = plan.pairs / micro
    bare = without_cache(plan)
    cost = cost_of_pass(system, work_of(bare, micro))
    llm, whole = cost.parts["LLM"].flops * passes, cost.total.flops * passes
    vision = sum(t.flops for name, t in cost.parts.items() if name.endswith("vision encoder")) * passes
    once = vision / passes / work_of(bare, micro).images * min(plan.images, plan.pairs)
    rows = []
    if "vision_encoder" in plan.trained:
        rows.append(Saving("vision features stored", "not possible: the encoder is trained", whole, whole))
    else:
        saved = whole - vision + min(once, vision)
        rows.append(Saving("vision features stored", "on" if plan.cached else "off", whole, saved))
    state = "on" if plan.sharing else "off"
    if plan.texts_per_visit == 1:
        state = "needs data.texts_per_visit above 1"
    if system.is_encoder_decoder:
        state = "not for encoder-decoders"
    factor = _factor(system, plan)
    rows.append(
        Saving("soft prompt read once for all texts of an image", state, whole, whole - llm * (1 - factor))
    )
    every = cost_of_pass(system, whole_logits(system, work_of(bare, micro))).total.flops * passes
    state = "not needed: the decoder reads answers only" if system.is_encoder_decoder else "on"
    rows.append(Saving("logits only where there is loss", state, every, whole))
    return rows


def sharing_factor(system: System, plan: StagePlan) -> float:
    """Return the share of the LLM's FLOPs that is left where prefix sharing is on; 1 elsewhere."""
    return _factor(system, plan) if plan.sharing else 1.0


def _factor(system: System, plan: StagePlan) -> float:
    if system.is_encoder_decoder or plan.texts_per_visit == 1:
        return 1.0
    head, per_token, per_pair = _coefficients(system, plan)
    prefix, text, texts = system.image_tokens, plan.texts.tokens, plan.texts_per_visit
    length = prefix + text
    apart = texts * (head + per_token * length + per_pair * length**2)
    tokens = prefix + texts * text
    shared = texts * head + per_token * tokens + per_pair * (prefix**2 + texts * text * length)
    return shared / apart


def _coefficients(system: System, plan: StagePlan) -> tuple[float, float, float]:
    """Return FLOPs of the head, of one token, and of one pair of tokens."""
    prefix, text = system.image_tokens, plan.texts.tokens
    length = prefix + text
    logits = max(1, min(plan.texts.logit_tokens, length // 2))
    work = work_of(without_cache(plan), 1)
    counts = []
    for tokens, places in ((text, logits), (text, 2 * logits), (text + length, logits)):
        cost = cost_of_pass(system, replace(work, text_tokens=tokens, logit_tokens=places))
        counts.append(cost.parts["LLM"].flops)
    head = counts[1] - counts[0]
    one, two = counts[0] - head, counts[2] - head
    per_pair = max(0.0, (two - 2 * one) / (2 * length**2))
    # the head was counted at `logits` places; texts need theirs
    return head * plan.texts.logit_tokens / logits, one / length - per_pair * length, per_pair

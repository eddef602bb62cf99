"""What is to be estimated: stages with their pairs, texts and trained parts, from a recipe or options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpgtrans.cost.tables import table
from vpgtrans.errors import EstimateError
from vpgtrans.recipe import Data, Prompt, Recipe, Stage

FINE_TUNED = frozenset({"vision_norm", "query_tokens", "qformer", "projector"})
CAPTION_TOKENS = 24
"""Assumed tokens of the longest caption of a batch (methods.md D)."""
WARM_UP_SHARE = 1.4 / 13.8
"""Share of pairs in the warm-up of the paper's scaled-up run."""
FEATURE_BYTES = 32 * 2**30
"""Above this size ``features.cache: auto`` does not store vision features."""


@dataclass(frozen=True)
class Texts:
    """How long the texts of a batch are, padded, soft prompt left out."""

    tokens: int
    logit_tokens: int
    """Places whose logits are needed; for an encoder-decoder the decoder's length."""
    source: str


@dataclass(frozen=True)
class StagePlan:
    """One stage to be priced."""

    name: str
    pairs: float
    batch: int
    micro_batch: int
    trained: frozenset[str]
    texts: Texts
    images: float
    """Different images in the stage's data."""
    texts_per_visit: int = 1
    cached: bool = False
    sharing: bool = False
    """The LLM reads a soft prompt once for all texts of an image in a batch."""


@dataclass(frozen=True)
class DataFacts:
    """What is known of one data section."""

    pairs: int | None
    images: int | None
    texts_per_image: int
    source: str


def stages_of_recipe(
    recipe: Recipe,
    *,
    is_encoder_decoder: bool,
    feature_bytes: int,
    pairs: float | None = None,
    facts: Mapping[Data, DataFacts] | None = None,
    texts: Mapping[Data, Texts] | None = None,
) -> tuple[list[StagePlan], list[str]]:
    """Return a recipe's stages with their pairs, and what was assumed.

    Args:
        recipe: the recipe.
        is_encoder_decoder: of the target LLM.
        feature_bytes: of one image's stored vision features.
        pairs: of all stages together; fills in a stage whose data is not there.
        facts: sizes of data sections that were read.
        texts: lengths of texts that were tokenised.

    Raises:
        EstimateError: no stage, unknown pairs, or pairs that contradict the stages' own lengths.
    """
    if not recipe.stages:
        raise EstimateError(
            "the recipe has no stages: give one with stages, or --source, --target and --pairs"
        )
    known = {stage.name: _facts_of(stage.data or recipe.data, facts or {}) for stage in recipe.stages}
    lengths = {stage.name: _pairs_of(stage, known[stage.name]) for stage in recipe.stages}
    notes = [f"{name}: {fact.source}" for name, fact in known.items() if fact.source]
    settled = _with_given(lengths, pairs)
    plans = []
    for stage in recipe.stages:
        data, fact, number = stage.data or recipe.data, known[stage.name], settled[stage.name]
        images = float(fact.images or number / max(1, fact.texts_per_image))
        visit = data.texts_per_visit or fact.texts_per_image
        length = (texts or {}).get(data) or assumed_texts(recipe.prompt, is_encoder_decoder)
        notes.append(f"{stage.name}: {length.source}")
        cached = _cached(recipe, stage, min(images, number) * feature_bytes)
        sharing = getattr(recipe.features, "prefix_sharing", "off") != "off" and not is_encoder_decoder
        plans.append(
            StagePlan(
                name=stage.name,
                pairs=number,
                batch=stage.batch_size,
                micro_batch=min(stage.micro_batch_size or stage.batch_size, stage.batch_size),
                trained=stage.parts,
                texts=length,
                images=images,
                texts_per_visit=min(visit, stage.batch_size),
                cached=cached,
                sharing=sharing and visit > 1,
            )
        )
    return plans, list(dict.fromkeys(notes))


def default_stages(pairs: float, is_encoder_decoder: bool) -> tuple[list[StagePlan], list[str]]:
    """Return the paper's two stages for so many pairs (``--source --target --pairs`` without a recipe)."""
    check_pairs(pairs)
    texts = assumed_texts(Prompt(), is_encoder_decoder)
    batch = 1152 if is_encoder_decoder else 1728
    common: dict[str, Any] = {"batch": batch, "micro_batch": 36, "texts": texts}
    first = pairs * WARM_UP_SHARE
    stages = [
        StagePlan("warmup", first, trained=frozenset({"projector"}), images=first, **common),
        StagePlan("finetune", pairs - first, trained=FINE_TUNED, images=pairs - first, **common),
    ]
    share = f"{WARM_UP_SHARE:.0%} of the pairs in the warm-up, as in the paper's scaled-up run"
    return stages, [share, f"both stages: {texts.source}", "no vision features stored"]


def assumed_texts(prompt: Prompt, is_encoder_decoder: bool) -> Texts:
    """Return the lengths assumed for captions that are not there to be tokenised."""
    tokens = min(CAPTION_TOKENS, prompt.max_text_tokens)
    source = f"assumed: captions of {tokens} tokens, padded"
    return Texts(1, tokens, source) if is_encoder_decoder else Texts(tokens, tokens, source)


def check_pairs(pairs: float | None) -> None:
    """Refuse a number of pairs that is none.

    Raises:
        EstimateError: zero, negative, infinite or beyond 1e13.
    """
    if pairs is not None and not 0 < pairs < 1e13:
        raise EstimateError(f"--pairs {pairs:g} is no number of image-text pairs: give one like 13.8M")


def parse_pairs(word: str) -> float:
    """Read ``13.8M``, ``558k``, ``1.2B`` or a plain number.

    Raises:
        EstimateError: it is no number.
    """
    factors = {"k": 1e3, "m": 1e6, "b": 1e9}
    text = word.strip().replace(",", "").replace("_", "")
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        number = float(text[:-1] if factor != 1.0 else text) * factor
    except ValueError:
        raise EstimateError(f"--pairs {word} is no number: give one like 13.8M, 558k or 1000000") from None
    check_pairs(number)
    return number


def with_pairs(plan: StagePlan, name: str, pairs: float) -> StagePlan:
    """Return the same stage under another name for so many pairs, on as many images."""
    return replace(plan, name=name, pairs=pairs, images=max(plan.images, pairs / plan.texts_per_visit))


def _facts_of(data: Data, read: Mapping[Data, DataFacts]) -> DataFacts:
    if data in read:
        return read[data]
    rows = table("datasets")
    names = [Path(source.path).stem for source in data.train]
    if not names or any(name not in rows for name in names):
        return DataFacts(None, None, 1, "")
    found = [rows[name] for name in names]
    pairs, images = sum(row["pairs"] for row in found), sum(row["images"] for row in found)
    told = f"assumed: {', '.join(names)} with {pairs:,} pairs (published sizes; the files are not here)"
    return DataFacts(pairs, images, max(1, round(pairs / images)), told)


def _pairs_of(stage: Stage, facts: DataFacts) -> float | None:
    if stage.max_steps is not None:
        return float(stage.max_steps * stage.batch_size)
    return None if facts.pairs is None or stage.epochs is None else facts.pairs * stage.epochs


def _with_given(lengths: Mapping[str, float | None], pairs: float | None) -> dict[str, float]:
    """Fill in unknown lengths from the given total, or say where the two contradict each other."""
    check_pairs(pairs)
    unknown = [name for name, length in lengths.items() if length is None]
    told = {name: length for name, length in lengths.items() if length is not None}
    known = sum(told.values())
    shown = ", ".join(f"{name} {length:,.0f}" for name, length in told.items())
    if unknown and pairs is None:
        raise EstimateError(
            f"stage {', '.join(unknown)}: its length is in epochs, and its data is not here to be counted; "
            "give --pairs (of all stages together)"
        )
    if pairs is None:
        return told
    rest = pairs - known
    if (unknown and rest <= 0) or (not unknown and abs(rest) > 0.01 * pairs):
        raise EstimateError(
            f"--pairs {pairs:,.0f} contradicts the recipe's own lengths ({shown}: {known:,.0f} pairs)"
            "; leave --pairs out, or change the stages with --set stages.NAME.max_steps=N"
        )
    return {name: rest / len(unknown) if length is None else length for name, length in lengths.items()}


def _cached(recipe: Recipe, stage: Stage, size: float) -> bool:
    if recipe.features.cache == "off" or any("vision_encoder" in one.parts for one in recipe.stages):
        return False
    return recipe.features.cache != "auto" or size < FEATURE_BYTES


def total_pairs(stages: Sequence[StagePlan]) -> float:
    """Return the pairs of all stages."""
    return sum(stage.pairs for stage in stages)

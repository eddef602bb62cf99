"""Estimates of recipes and of options: reads what is here, assumes what is not, and says which is which."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vpgtrans.cost.hardware import Gpu, check_price, find_gpu
from vpgtrans.cost.plan import DataFacts, StagePlan, Texts, default_stages, stages_of_recipe, total_pairs
from vpgtrans.cost.presets import config_of, preset_name
from vpgtrans.cost.speedup import Speedup, given_speedup, published_speedup
from vpgtrans.cost.system import System, ported_system
from vpgtrans.cost.tables import table
from vpgtrans.data.load import load_records
from vpgtrans.errors import EstimateError, VPGTransError
from vpgtrans.recipe import Data, Recipe
from vpgtrans.transfer.context import spread
from vpgtrans.transfer.preview import encoder_from_configs
from vpgtrans.transfer.probe import this_gpu
from vpgtrans.weights.locate import locate_model

if TYPE_CHECKING:
    from vpgtrans.cost.results import Estimate, Measured, Question
    from vpgtrans.data.prompts import PromptEncoder
    from vpgtrans.data.records import Record

SAMPLED_TEXTS = 512
"""Texts of a data section that are tokenised to know their lengths."""


@dataclass(frozen=True)
class Asked:
    """What the user asked for."""

    recipe: Recipe | None = None
    source: str | None = None
    targets: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    num_gpus: int = 1
    price: float | None = None
    pairs: float | None = None
    compare_to: str = "scratch"
    speedup: float | None = None


@dataclass
class _Read:
    """What was found of a recipe's data."""

    facts: dict[Data, DataFacts] = field(default_factory=dict)
    texts: dict[Data, Texts] = field(default_factory=dict)


def run_estimate(asked: Asked, probe: "Measured | None" = None) -> "list[Estimate]":
    """Return one estimate for each target and GPU.

    Args:
        asked: the options.
        probe: what a probe measured here; replaces the band and the memory count.

    Raises:
        EstimateError: nothing to estimate, contradictory numbers, unknown GPU or model, or no GPU fits.
        VPGTransError: source and target cannot be ported.
    """
    from vpgtrans.cost.estimate import estimate, require_fit
    from vpgtrans.cost.utilisation import stored

    check_price(asked.price)
    if probe is None:
        gpus = [find_gpu(name, asked.price) for name in asked.gpus or ("a100-40g",)]
    else:
        here = this_gpu()
        gpus = [here if asked.price is None else replace(here, price=asked.price, price_source="given")]
    questions = [_question(asked, target) for target in _targets(asked)]
    estimates = [
        estimate(question, gpu, stored(), gpus=asked.num_gpus, probe=probe)
        for question in questions
        for gpu in gpus
    ]
    if probe is None:
        require_fit(estimates)
    return estimates


def estimate_on(recipe: Recipe, gpu: Gpu) -> "Estimate":
    """Return the estimate of a recipe on one GPU, whether it fits or not (for ``transfer``)."""
    from vpgtrans.cost.estimate import estimate
    from vpgtrans.cost.utilisation import stored

    return estimate(_question(Asked(recipe=recipe), None), gpu, stored())


def _targets(asked: Asked) -> Sequence[str | None]:
    if asked.recipe is None and (asked.source is None or not asked.targets or asked.pairs is None):
        raise EstimateError("give a recipe, or --source, --target (or --targets) and --pairs")
    return asked.targets or (None,)


def _question(asked: Asked, target: str | None) -> "Question":
    from vpgtrans.cost.results import Question

    recipe = asked.recipe
    if recipe is not None:
        recipe = _with_models(recipe, asked.source, target)
    source_ref = recipe.source.model if recipe else str(asked.source)
    target_ref = recipe.target.model if recipe else str(target)
    source, source_from = config_of(source_ref, recipe.source.revision if recipe else None)
    llm, target_from = config_of(target_ref, recipe.target.revision if recipe else None)
    system = ported_system(source, llm, target_ref)
    if recipe is not None and recipe.target.dtype != "auto":
        system = replace(system, llm_dtype=recipe.target.dtype)
    plans, notes = _plans(asked, recipe, system)
    speedup, name, pairs = _against(asked, system, source, source_ref, target_ref, plans)
    notes = [f"configs: source {source_from}, target {target_from}", *notes]
    published = None if asked.compare_to == "scratch" else asked.compare_to
    return Question(system, tuple(plans), speedup, name, pairs, published, tuple(notes))


def _plans(asked: Asked, recipe: Recipe | None, system: System) -> tuple[list[StagePlan], list[str]]:
    from vpgtrans.cost.memory import feature_bytes

    if recipe is None:
        return default_stages(float(asked.pairs or 0), system.is_encoder_decoder)
    read = _read_data(recipe)
    return stages_of_recipe(
        recipe,
        is_encoder_decoder=system.is_encoder_decoder,
        feature_bytes=feature_bytes(system),
        pairs=asked.pairs,
        facts=read.facts,
        texts=read.texts,
    )


def _against(
    asked: Asked,
    system: System,
    source: dict[str, Any],
    source_ref: str,
    target_ref: str,
    plans: list[StagePlan],
) -> tuple[Speedup, str, float | None]:
    """Return the speed-up, what stands against the transfer, and its pairs if a published row gives them."""
    if asked.compare_to != "scratch":
        rows = table("runs")["runs"]
        if asked.compare_to not in rows:
            raise EstimateError(
                f"--compare-to {asked.compare_to}: no published run of that name; there are scratch, "
                f"{', '.join(rows)}"
            )
        row = rows[asked.compare_to]
        told = f"published: {row['title']}, {row['pairs']:,.0f} pairs, {row['gpu_hours']:g} h on {row['gpu']}"
        return Speedup(row["pairs"] / total_pairs(plans), told), asked.compare_to, float(row["pairs"])
    if asked.speedup is not None:
        return given_speedup(asked.speedup), "from scratch", None
    from vpgtrans.cost.estimate import parameters_of

    source_llm = dict(source.get("text_config") or {})
    speedup = published_speedup(
        preset_name(source_ref),
        preset_name(target_ref),
        str(source_llm.get("model_type")),
        str(system.llm.get("model_type")),
        parameters_of(system),
    )
    return speedup, "from scratch", None


def _with_models(recipe: Recipe, source: str | None, target: str | None) -> Recipe:
    update: dict[str, Any] = {}
    if source is not None:
        update["source"] = recipe.source.model_copy(update={"model": source})
    if target is not None:
        update["target"] = recipe.target.model_copy(update={"model": target})
    return recipe.model_copy(update=update)


def _read_data(recipe: Recipe) -> _Read:
    """Count and tokenise the data sections that are here; leave out those that are not."""
    read = _Read()
    for data in {stage.data or recipe.data: None for stage in recipe.stages}:
        try:
            records = [record for source in data.train for record in load_records(source)]
        except VPGTransError:
            continue
        if not records:
            continue
        texts = sum(len(record.texts) for record in records)
        told = f"measured: {texts:,} texts of {len(records):,} images in the data"
        read.facts[data] = DataFacts(texts, len(records), max(1, round(texts / len(records))), told)
        lengths = _lengths(recipe, records)
        if lengths is not None:
            read.texts[data] = lengths
    return read


def _lengths(recipe: Recipe, records: "list[Record]") -> Texts | None:
    """Tokenise some texts with the target's own tokenizer; None if it is not here."""
    try:
        encoder = encoder_from_configs(
            recipe,
            locate_model(recipe.source.model, recipe.source.revision, weights=False),
            locate_model(recipe.target.model, recipe.target.revision, weights=False),
        )
    except VPGTransError:
        return None
    pairs = spread([text for record in records for text in record.texts], SAMPLED_TEXTS)
    batch = min([stage.micro_batch_size or stage.batch_size for stage in recipe.stages] or [32])
    return _padded(encoder, pairs, batch)


def _padded(encoder: "PromptEncoder", pairs: Sequence[Any], batch: int) -> Texts:
    """Return the mean over batches of the longest text and of the places with loss."""
    rows = [encoder.encode(pair) for pair in pairs]
    groups = [rows[start :: max(1, len(rows) // batch)] for start in range(max(1, len(rows) // batch))]
    tokens = [max(len(row.input_ids) for row in group) - encoder.num_image_tokens for group in groups]
    if encoder.is_encoder_decoder:
        places = [max(len(row.labels) for row in group) for group in groups]
    else:
        firsts = [min(next(i for i, x in enumerate(r.labels) if x >= 0) for r in group) for group in groups]
        longest = [max(len(row.input_ids) for row in group) for group in groups]
        places = [length - first + 1 for length, first in zip(longest, firsts, strict=True)]
    told = f"measured: {len(rows)} texts with the target's tokenizer, padded to the longest of {batch}"
    return Texts(round(sum(tokens) / len(groups)), max(1, round(sum(places) / len(groups))), told)

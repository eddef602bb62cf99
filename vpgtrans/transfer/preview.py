"""Samples as the model sees them, from tokenizers and configs alone: no weights are read."""

from vpgtrans.data.load import load_records
from vpgtrans.data.preview import Preview, preview
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.errors import DataError
from vpgtrans.recipe import Recipe
from vpgtrans.transfer.context import Item, spread
from vpgtrans.transfer.measure import LAYOUTS
from vpgtrans.weights.locate import ModelFiles, locate_model


def encoder_from_configs(recipe: Recipe, source: ModelFiles, target: ModelFiles) -> PromptEncoder:
    """Return the prompt encoder that a run will use, without reading a weight.

    An open layout is taken in the stock processor's order.

    Raises:
        CheckpointError: if source and target are confused.
        PortabilityError: if one of them cannot be ported.
    """
    from vpgtrans.alignment.tables import load_tokenizer
    from vpgtrans.vlm.image_token import place_image_token
    from vpgtrans.vlm.portability import check_source, check_target

    check_source(source.config())
    check_target(target.config())
    config = target.config()
    placed = place_image_token(load_tokenizer(target), int(config["vocab_size"]))
    layout = LAYOUTS[0] if recipe.prompt.layout == "auto" else recipe.prompt.layout
    return PromptEncoder(
        placed.tokenizer,
        placed.token_id,
        int(source.config()["num_query_tokens"]),
        layout,
        recipe.prompt,
        bool(config.get("is_encoder_decoder", False)),
    )


def preview_samples(recipe: Recipe, samples: int) -> list[Preview]:
    """Return so many training pairs at even distances, exactly as training encodes them.

    An open layout (``prompt.layout: auto``) is shown in the stock processor's order.

    Raises:
        DataError: if the recipe has no training data.
    """
    sources = recipe.data.train or tuple(
        source for stage in recipe.stages if stage.data for source in stage.data.train
    )
    if not sources:
        raise DataError("the recipe has no data.train to show")
    source = locate_model(recipe.source.model, recipe.source.revision, weights=False)
    target = locate_model(recipe.target.model, recipe.target.revision, weights=False)
    encoder = encoder_from_configs(recipe, source, target)
    items = [Item(record, text) for one in sources for record in load_records(one) for text in record.texts]
    return [preview(encoder, item.record, item.text) for item in spread(items, samples)]

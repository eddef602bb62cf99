"""A recipe for one step alone, made from command-line options, a recipe file, or both."""

from collections.abc import Mapping, Sequence
from typing import Any

from vpgtrans.errors import RecipeError
from vpgtrans.recipe import Recipe, apply_overrides, check_recipe, load_recipe


def recipe_of(
    recipe: str | None,
    source: str | None,
    target: str | None,
    overrides: Sequence[str],
    sections: Mapping[str, Mapping[str, Any]],
) -> Recipe:
    """Return the recipe that options describe; given options win over the recipe file.

    Args:
        recipe: a recipe's file or shipped name, or None.
        source: the source model, or None to take the recipe's.
        target: the target model, or None to take the recipe's.
        overrides: ``section.key=value`` words.
        sections: values per section; None means "not given".

    Raises:
        RecipeError: if neither options nor a recipe name source and target.
    """
    if recipe is None and (source is None or target is None):
        raise RecipeError("give --source and --target, or a recipe that names them")
    if recipe is None:
        tree: dict[str, Any] = {
            "name": "single-step",
            "source": {"model": source},
            "target": {"model": target},
        }
    else:
        tree = load_recipe(recipe, overrides).model_dump(mode="json")
        for key, name in (("source", source), ("target", target)):
            if name is not None:
                tree[key] = {**tree[key], "model": name}
    for section, values in sections.items():
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            tree[section] = {**tree.get(section, {}), **given}
    checked = check_recipe(tree)
    if recipe is not None or not overrides:
        return checked
    return check_recipe(apply_overrides(checked.model_dump(mode="json"), overrides))

"""Recipes: what a transfer consists of, as strictly checked data."""

from vpgtrans.recipe.load import (
    apply_overrides,
    check_recipe,
    differing_keys,
    dump_recipe,
    find_recipe,
    load_recipe,
    shipped_recipes,
)
from vpgtrans.recipe.schema import (
    PART_GROUPS,
    PART_NAMES,
    Converter,
    Data,
    DataSource,
    Evaluation,
    Export,
    Features,
    Init,
    ModelRef,
    Prompt,
    Recipe,
    Stage,
)

__all__ = [
    "PART_GROUPS",
    "PART_NAMES",
    "Converter",
    "Data",
    "DataSource",
    "Evaluation",
    "Export",
    "Features",
    "Init",
    "ModelRef",
    "Prompt",
    "Recipe",
    "Stage",
    "apply_overrides",
    "check_recipe",
    "differing_keys",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "shipped_recipes",
]

"""Read, override, check and write recipes; every error names the key's path."""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vpgtrans.errors import RecipeError
from vpgtrans.recipe.schema import Recipe


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-4`` as a string; this loader reads it as the number people mean."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package: name to file."""
    packaged = Path(str(resources.files("vpgtrans"))) / "_recipes"
    folder = packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a shipped recipe's name or of a path.

    Raises:
        RecipeError: if there is neither; names the nearest shipped recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    near = difflib.get_close_matches(name_or_path, shipped, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise RecipeError(
        f"no recipe file '{name_or_path}' and no shipped recipe of that name{hint} "
        f"(shipped: {', '.join(shipped)})"
    )


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or shipped name, with ``section.key=value`` overrides applied.

    Raises:
        RecipeError: if the file is no YAML mapping, a key is unknown (the nearest one is
            offered) or a value is of the wrong type or range (path, given, allowed).
    """
    path = find_recipe(name_or_path)
    tree = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping with keys like 'source' and 'target'")
    return check_recipe(apply_overrides(tree, overrides))


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set ``section.key=value`` words in a parsed tree, in place, and return it.

    List entries are named by position or by their ``name``: ``stages.warmup.epochs=2``.
    """
    for override in overrides:
        _apply(tree, override)
    return tree


def check_recipe(tree: dict[str, Any]) -> Recipe:
    """Turn a parsed tree into a :class:`Recipe`.

    Raises:
        RecipeError: as :func:`load_recipe`.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError("; ".join(lines)) from error


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML with every default spelled out."""
    tree = recipe.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def differing_keys(one: Recipe, other: Recipe) -> list[str]:
    """Return the paths of the keys in which two recipes differ, with both values."""
    mine, theirs = _flatten(one.model_dump(mode="json")), _flatten(other.model_dump(mode="json"))
    keys = sorted(mine.keys() | theirs.keys())
    return [
        f"{key}: {mine.get(key, 'absent')!r} here, {theirs.get(key, 'absent')!r} there"
        for key in keys
        if mine.get(key, _flatten) != theirs.get(key, _flatten)
    ]


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set takes section.key=value, given '{override}'")
    *sections, last = key.split(".")
    place: Any = tree
    for section in sections:
        place = _step(place, section, key)
    parsed = _parse(value, f"--set {key}")
    if isinstance(place, list):
        place[_index(place, last, key)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        raise RecipeError(f"--set {key}: '{last}' lies below a value that is no section")


def _step(place: Any, section: str, key: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, section, key)]
    if not isinstance(place, dict):
        raise RecipeError(f"--set {key}: '{section}' lies below a value that is no section")
    return place.setdefault(section, {})


def _index(items: list[Any], word: str, key: str) -> int:
    """Accept a position or the ``name`` of a list entry, as in ``stages.warmup.learning_rate``."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if word in names:
        return names.index(word)
    if word.isdigit() and int(word) < len(items):
        return int(word)
    known = ", ".join(str(name) for name in names if name) or f"0 to {len(items) - 1}"
    raise RecipeError(f"--set {key}: no entry '{word}' here (there are: {known})")


def _explain(problem: Any) -> str:
    path = ".".join(str(step) for step in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(sorted(known))}"
        return f"unknown recipe key '{path}'{hint}"
    if problem["type"] == "missing":
        return f"recipe key '{path}' is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path != "recipe" else message
    return f"{path}: {message}, given {problem['input']!r}"


def _keys_at(location: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    for step in location:
        if isinstance(step, int):
            continue
        model = _model_in(model.model_fields[step].annotation) if step in model.model_fields else None
        if model is None:
            return []
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, typing.Union, types.UnionType, typing.Annotated):
        found = (_model_in(argument) for argument in typing.get_args(annotation))
        return next((model for model in found if model is not None), None)
    return None


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        items = tree.items()
    elif isinstance(tree, list) and tree:
        items = ((str(position), value) for position, value in enumerate(tree))  # type: ignore[assignment]
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat

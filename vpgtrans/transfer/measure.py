"""How good a projector is before any training: the frozen target's loss on a few dozen captions."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vpgtrans.errors import DataError
from vpgtrans.transfer.context import Context, Item, spread

if TYPE_CHECKING:
    import torch
    from torch import nn

LAYOUTS = ("image-bos-text", "bos-image-text")
"""What ``prompt.layout: auto`` chooses between; the stock processor's order first, so that it wins a tie."""


def training_items(context: Context, images: int) -> list[Item]:
    """Return one text each of so many training images, at even distances."""
    records = context.mix(context.recipe.data).records
    if not records:
        raise DataError("this initialisation needs training images and texts: give data.train (fuse: --data)")
    return [Item(record, record.texts[0]) for record in spread(records, images)]


def vpg_outputs(context: Context, items: list[Item], layout: str = LAYOUTS[0]) -> "torch.Tensor":
    """Return the frozen VPG's outputs for the items' images, (I, N, Q) float32 on the CPU."""
    import torch

    collate = context.collator(context.recipe.data, layout)
    rows = []
    with context.progress.task("VPG outputs for the initialisation", total=len(items), unit="images") as task:
        for start in range(0, len(items), 32):
            part = items[start : start + 32]
            batch = collate([item.pair for item in part]).to(context.device)
            with torch.no_grad():
                outputs_UNQ = context.trainee.vpg_output(batch)
            rows.append(outputs_UNQ[batch.image_index].float().cpu())
            task.advance(len(part))
    return torch.cat(rows)


class Measure:
    """Zero-step loss of a projector on a few dozen training texts, per prompt layout."""

    def __init__(self, context: Context) -> None:
        self._context = context
        recipe = context.recipe
        self._layouts = LAYOUTS if recipe.prompt.layout == "auto" else (recipe.prompt.layout,)
        self._blind = recipe.init.calibration == "none" and len(self._layouts) == 1
        self._items = [] if self._blind else training_items(context, recipe.init.calibration_texts)

    def calibrated(self, base: "nn.Linear") -> tuple["nn.Linear", dict[str, Any]]:
        """Return the calibrated projector and what was measured on the way."""
        if self._blind:
            return base, {"layout": self._layouts[0]}
        from vpgtrans.alignment.calibration import calibrate_norm, calibrate_search

        kind = self._context.recipe.init.calibration
        outputs_MQ = vpg_outputs(self._context, self._items).flatten(0, 1)
        word_norm = self._word_norm()
        best: tuple[float, nn.Linear, dict[str, Any]] | None = None
        for layout in self._layouts:
            loss_of = self._loss_of(layout)
            if kind == "search":
                projector, facts = calibrate_search(base, outputs_MQ, word_norm, loss_of)
            elif kind == "norm":
                projector, facts = calibrate_norm(base, outputs_MQ, word_norm)
            else:
                projector, facts = base, {}
            loss = loss_of(projector)
            self._context.progress.note(f"zero-step loss with layout {layout}: {loss:.3f}")
            if best is None or loss < best[0]:
                best = (loss, projector, {**facts, "layout": layout, "zero_step_loss": loss})
        if best is None:
            raise DataError("no prompt layout to measure")
        return best[1], {**best[2], "word_norm": word_norm, "calibration_texts": len(self._items)}

    def _word_norm(self) -> float:
        """Mean length of the target's embeddings of the calibration texts' words."""
        import torch

        context = self._context
        encode: Callable[..., Any] = context.ported.tokenizer
        texts = [item.text.answer for item in self._items]
        ids = [i for row in encode(texts, add_special_tokens=False).input_ids for i in row]
        embed = context.ported.family.llm(context.ported.model).get_input_embeddings()
        with torch.no_grad():
            rows_TD = embed(torch.tensor(ids, device=context.device)).float()
        return float(rows_TD.norm(dim=-1).mean())

    def _loss_of(self, layout: str) -> Callable[["nn.Linear"], float]:
        import torch

        context = self._context
        collate = context.collator(context.recipe.data, layout)
        batches = []
        for start in range(0, len(self._items), 16):
            batch = collate([item.pair for item in self._items[start : start + 16]]).to(context.device)
            with torch.no_grad():
                outputs_UNQ = context.trainee.vpg_output(batch)
            batches.append(replace(batch, pixel_values=None, features=outputs_UNQ, features_cut="vpg"))
        family, model = context.ported.family, context.ported.model

        def loss_of(projector: "nn.Linear") -> float:
            family.set_projector(model, projector.to(context.device, torch.float32))
            with torch.no_grad():
                sums = [context.trainee.loss(batch) for batch in batches]
            return float(sum(loss.item() for loss, _ in sums)) / sum(count for _, count in sums)

        return loss_of

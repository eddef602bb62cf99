"""What the steps of one run share: models, tokens, data, features; each loaded once, when first needed."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpgtrans.data.batches import Collator
from vpgtrans.data.load import Mix, load_mix
from vpgtrans.data.order import PairOrder
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.data.steps import StepBatches
from vpgtrans.errors import DataError, RunFolderError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Data, DataSource, Recipe, Stage
from vpgtrans.transfer.folder import RunFolder, read_facts
from vpgtrans.weights.locate import ModelFiles, locate_model

if TYPE_CHECKING:
    import torch

    from vpgtrans.vlm.assemble import Ported
    from vpgtrans.vlm.features import FeatureStore
    from vpgtrans.vlm.forward import Trainee


FEATURE_BYTES = 32 * 2**30
"""Above this size ``features.cache: auto`` computes vision features anew each time."""


@dataclass(frozen=True)
class Item:
    """One pair of the data: an image with one of its texts."""

    record: Record
    text: TextPair

    @property
    def pair(self) -> tuple[Record, TextPair]:
        """The pair as the collator takes it."""
        return self.record, self.text


class Context:
    """A recipe, its run folder, and everything loaded for it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, progress: Progress = SILENT) -> None:
        self.recipe, self.folder, self.progress = recipe, folder, progress
        self._mixes: dict[Data, Mix] = {}
        self._stores: dict[Data, FeatureStore] = {}

    @cached_property
    def source_files(self) -> ModelFiles:
        """The source VLM's files."""
        return locate_model(self.recipe.source.model, self.recipe.source.revision)

    @cached_property
    def target_files(self) -> ModelFiles:
        """The target LLM's files."""
        return locate_model(self.recipe.target.model, self.recipe.target.revision)

    @cached_property
    def device(self) -> "torch.device":
        """The GPU of this process where there is one, else the CPU."""
        from accelerate import PartialState

        return PartialState().device

    @cached_property
    def llm_dtype(self) -> "torch.dtype":
        """The frozen LLM's dtype: as the recipe says, or bfloat16 on a GPU and float32 on a CPU."""
        import torch

        name = self.recipe.target.dtype
        if name == "auto":
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]

    @cached_property
    def ported(self) -> "Ported":
        """The source's VPG with the target LLM, projector not yet initialised."""
        from vpgtrans.vlm.assemble import assemble_port

        with self.progress.task("loading the source VPG and the target LLM"):
            ported = assemble_port(self.source_files, self.target_files, self.llm_dtype)
        for note in ported.notes:
            self.progress.note(note)
        ported.model.to(self.device)
        return ported

    @cached_property
    def trainee(self) -> "Trainee":
        """The ported model as the training loop drives it."""
        from vpgtrans.vlm.forward import Trainee

        trainee = Trainee(self.ported, self.recipe.features.prefix_sharing)
        if trainee.unshared is not None:
            self.progress.note(f"every text is trained as a sample of its own: {trainee.unshared}")
        return trainee

    def mix(self, data: Data) -> Mix:
        """Return the training sets of a data section, unreadable images left out."""
        if data not in self._mixes:
            name = "train" if data == self.recipe.data else f"train-{len(self._mixes)}"
            self._mixes[data] = self._load(name, data.train, data.max_unreadable)
        return self._mixes[data]

    def load_data(self) -> None:
        """Read all sets and decode every image once, before anything expensive.

        Raises:
            DataError: if more images are unreadable than ``data.max_unreadable`` allows.
        """
        for data in (self.recipe.data, *(stage.data for stage in self.recipe.stages if stage.data)):
            if data.train:
                self.mix(data)
        self.validation, self.test  # noqa: B018  (loaded by being looked at)

    @cached_property
    def validation(self) -> list[Item]:
        """The validation pairs in which loss is measured during training."""
        return self._held_out("validation", self.recipe.evaluation.validation_texts)

    @cached_property
    def test(self) -> list[Item]:
        """The test pairs."""
        return self._held_out("test", self.recipe.evaluation.max_texts)

    def _held_out(self, split: str, limit: int | None) -> list[Item]:
        sources = getattr(self.recipe.data, split)
        if not sources:
            return []
        mix = self._load(split, sources, self.recipe.data.max_unreadable)
        return spread([Item(record, text) for record in mix.records for text in record.texts], limit)

    def _load(self, split: str, sources: tuple[DataSource, ...], max_unreadable: float) -> Mix:
        """Read sets with the images left out that do not decode; too many of them are an error."""
        report = None
        if self.folder.recipe.is_file():
            self.folder.reports.mkdir(exist_ok=True)
            report = self.folder.unreadable(split)
        return load_mix(sources, max_unreadable, report=report, progress=self.progress)

    def texts(self) -> list[str]:
        """Return the training answers, for caption anchors."""
        return [text.answer for record in self.mix(self.recipe.data).records for text in record.texts]

    def encoder(self, layout: str | None = None) -> PromptEncoder:
        """Return the prompt encoder for a layout; by default the one that fusing settled on."""
        model = self.ported.model
        return PromptEncoder(
            self.ported.tokenizer,
            self.ported.image_token_id,
            model.config.num_query_tokens,
            layout or self.layout,
            self.recipe.prompt,
            bool(model.config.text_config.is_encoder_decoder),
        )

    @property
    def layout(self) -> str:
        """The prompt layout of this run: the recipe's, or the one measured while fusing."""
        if self.recipe.prompt.layout != "auto":
            return self.recipe.prompt.layout
        facts = read_facts(self.folder.projector_facts)
        if facts is None:
            raise RunFolderError(
                f"no {self.folder.projector_init.name} in {self.folder.root}: "
                "run `vpgtrans fuse` into that folder first"
            )
        return str(facts["layout"])

    def features(self, data: Data) -> "FeatureStore | None":
        """Return the stored vision features of all images of a data section, computed on first use.

        None where the recipe turns the cache off, a stage trains the vision encoder, or ``auto``
        finds that it would not pay: no training follows, or the disk is too small.
        """
        if data not in self._stores:
            records = [*self.mix(data).records] if data.train else []
            if data == self.recipe.data:
                records += [item.record for item in (*self.validation, *self.test)]
            unique = {record.image.key: record for record in records}
            if not self._stores_features(len(unique)):
                return None
            from vpgtrans.vlm.features import collect_features

            shared = self.recipe.features.folder
            folder = self.folder.features if shared is None else Path(shared)
            self._stores[data] = collect_features(
                self.ported, list(unique.values()), "vision", folder, progress=self.progress
            )
        return self._stores[data]

    def _stores_features(self, num_images: int) -> bool:
        recipe = self.recipe
        if recipe.features.cache == "off" or any("vision_encoder" in s.parts for s in recipe.stages):
            return False
        if recipe.features.cache != "auto":
            return True
        vision = self.ported.model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        size = num_images * patches * vision.hidden_size * 4
        place = next(p for p in (self.folder.root, *self.folder.root.absolute().parents) if p.is_dir())
        fits = size < min(FEATURE_BYTES, shutil.disk_usage(place).free // 2)
        if recipe.stages and not fits:
            self.progress.note(
                f"vision features of {num_images:,} images ({size / 2**30:.1f} GiB) are not stored"
            )
        return bool(recipe.stages) and fits

    def collator(self, data: Data, layout: str | None = None) -> Collator:
        """Return the collator for a data section's images."""
        store = self.features(data)
        lookup = None if store is None else (lambda record: store[record.image.key])
        return Collator(
            self.encoder(layout), self.ported.image_processor, lookup, None if store is None else "vision"
        )

    def batches(self, stage: Stage) -> StepBatches:
        """Return a stage's batches, each a function of the seed and the step alone.

        Raises:
            DataError: if the stage has no training data.
        """
        data = stage.data or self.recipe.data
        if not data.train:
            raise DataError(
                f"stage '{stage.name}' has no data: give data.train or stages.{stage.name}.data.train"
            )
        order = PairOrder(
            self.mix(data), stage.batch_size, texts_per_visit=data.texts_per_visit, seed=self.recipe.seed
        )
        return StepBatches(
            order,
            self.collator(data),
            epochs=stage.epochs,
            max_steps=stage.max_steps,
            micro_batch_size=stage.micro_batch_size,
            by_length=self.trainee.pads_texts,
        )


def spread(items: list[Any], limit: int | None) -> list[Any]:
    """Return at most ``limit`` items at even distances, so that every part of a set is seen."""
    if limit is None or len(items) <= limit:
        return items
    return [items[position * len(items) // limit] for position in range(limit)]

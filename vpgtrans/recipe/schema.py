"""What a recipe may say: one frozen pydantic model a section, in Hugging Face spellings."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PART_NAMES = ("vision_encoder", "vision_norm", "query_tokens", "qformer", "projector")
"""Parts of a VLM that a stage may train, named as the field names them."""

PART_GROUPS: dict[str, tuple[str, ...]] = {
    "vpg": ("vision_encoder", "vision_norm", "query_tokens", "qformer"),
}
"""Names that stand for several parts."""

PartName = Literal["vision_encoder", "vision_norm", "query_tokens", "qformer", "projector", "vpg"]
Layout = Literal["auto", "bos-image-text", "image-bos-text", "image-text"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
ConverterMethod = Literal["ridge", "cosine", "cosine-sgd", "procrustes", "random", "identity", "from-file"]
ProjectorInit = Literal["converter", "captions", "converter+captions", "source", "random"]
Calibration = Literal["none", "norm", "search"]
Schedule = Literal["constant", "linear", "cosine"]
DataFormat = Literal["auto", "coco", "karpathy", "llava", "vqa", "imagefolder", "datasets"]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A recipe section: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelRef(Section):
    """A model: a hub id, a local folder or a GGUF file."""

    model: str
    revision: str | None = None
    dtype: DType = "auto"
    """Weights' dtype in memory; ``auto`` is bfloat16 on a GPU and float32 on a CPU for an LLM."""


class DataSource(Section):
    """One image-text set."""

    path: str
    """A file, a folder, or a ``datasets`` id (then ``split`` names the split)."""
    format: DataFormat = "auto"
    images: str | None = None
    """The folder that relative image paths start from; default: the data file's own folder."""
    split: str | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of this set in a mix; only the ratio between the sets counts."""
    max_records: Positive | None = None
    """Use only the first so many images."""
    template: str | None = None
    """Overrides ``prompt.template`` for this set."""


class Data(Section):
    """Where images and texts come from."""

    train: tuple[DataSource, ...] = ()
    validation: tuple[DataSource, ...] = ()
    test: tuple[DataSource, ...] = ()
    max_unreadable: Share = 0.01
    """Share of unreadable images that is skipped and counted; above it the run stops."""
    texts_per_visit: Positive | None = 1
    """How many texts of one image stand together in a batch; null: all of them."""


class Prompt(Section):
    """How one image and one text are laid out as tokens."""

    template: str = "{answer}"
    """Text around the fields ``{prompt}`` and ``{answer}``; loss stands on all from ``{answer}`` on."""
    answer_end: str = "\n"
    """What ends an answer; an empty string means the LLM's own end-of-sequence token."""
    layout: Layout = "auto"
    """Where BOS stands; ``auto`` measures both orders on training texts at step 0 and keeps the better."""
    max_text_tokens: Positive = 32


class Converter(Section):
    """The word converter between the two embedding spaces."""

    method: ConverterMethod = "ridge"
    pairs: Literal["vocabulary", "captions"] = "vocabulary"
    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Ridge strength relative to the mean diagonal of the covariance."""
    held_out: NonNegative = 2000
    """Anchors kept out of the fit for the reported metrics (at most a tenth of them)."""
    min_anchors: Positive = 300
    epochs: Positive | None = None
    """``cosine-sgd`` only; null: 5 with one tokenizer, 8 with two (the authors' values)."""
    learning_rate: Rate = 5.0
    batch_size: Positive = 4096
    file: str | None = None
    """``from-file`` only: a converter folder or .safetensors."""

    @model_validator(mode="after")
    def _file_belongs_to_from_file(self) -> "Converter":
        if (self.method == "from-file") != (self.file is not None):
            raise ValueError("'file' and 'method: from-file' go together: give both or neither")
        return self


class Init(Section):
    """How the projector starts."""

    projector: ProjectorInit = "converter"
    calibration: Calibration = "search"
    calibration_texts: Positive = 48
    captions_images: Positive = 1000
    """``captions``: how many images the closed-form regression reads."""
    captions_ridge: Annotated[float, Field(gt=0)] = 0.1


class Stage(Section):
    """One stage of training: what is trained, how long, at which rate."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    train: Annotated[tuple[PartName, ...], Field(min_length=1)]
    learning_rate: Rate
    lr_multiplier: Annotated[float, Field(gt=0)] = 1.0
    """The warm-up's 5x of the paper: the rate is ``learning_rate * lr_multiplier``."""
    learning_rates: dict[PartName, Rate] = {}
    """Rates of single parts, before the multiplier."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Where ``cosine`` and ``linear`` end."""
    schedule: Schedule = "cosine"
    warmup_steps: NonNegative = 0
    warmup_start_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: Positive | None = None
    batch_size: Positive
    """Pairs per optimizer step."""
    micro_batch_size: Positive | None = None
    """Pairs per forward pass; null: the whole batch."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Share, Share] = (0.9, 0.98)
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    save_steps: Positive | None = None
    """Null: ten checkpoints a stage; only the newest ``save_total_limit`` are kept."""
    save_total_limit: Positive = 1
    eval_steps: Positive | None = None
    """Null: ten validation losses a stage."""
    data: Data | None = None
    """A stage may bring its own data."""

    @model_validator(mode="after")
    def _one_length(self) -> "Stage":
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of 'epochs' and 'max_steps'")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is above batch_size {self.batch_size}"
            )
        return self

    @property
    def parts(self) -> frozenset[str]:
        """The trained parts with groups written out."""
        return frozenset(part for name in self.train for part in PART_GROUPS.get(name, (name,)))

    @property
    def peak_learning_rate(self) -> float:
        """The rate after the multiplier."""
        return self.learning_rate * self.lr_multiplier


class Evaluation(Section):
    """What is measured on held-out data."""

    batch_size: Positive = 32
    max_new_tokens: Positive = 16
    max_texts: Positive | None = 512
    """Texts of the test set that are generated for; null: all."""
    validation_texts: Positive = 256
    """Texts of the validation set in the loss that is measured during training."""


class Export(Section):
    """What comes out."""

    format: Literal["hf"] = "hf"
    dtype: DType = "auto"
    verify: bool = True


class Features(Section):
    """Reuse of what frozen parts compute."""

    cache: Literal["auto", "vision", "off"] = "auto"
    folder: str | None = None
    """Where cached features live; null: inside the run folder."""
    prefix_sharing: Literal["auto", "off"] = "auto"
    """``auto``: the LLM reads the soft prompt once for all texts of an image in a batch, if it can."""


class Recipe(Section):
    """A whole transfer."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    source: ModelRef
    target: ModelRef
    data: Data = Data()
    prompt: Prompt = Prompt()
    converter: Converter = Converter()
    init: Init = Init()
    stages: tuple[Stage, ...] = ()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    features: Features = Features()
    seed: NonNegative = 0
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    @model_validator(mode="after")
    def _stage_names_differ(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stage names must differ: {', '.join(twice)} stands more than once")
        return self

"""Input-embedding tables and tokenizers, read without ever building a language model.

Shapes: V = rows of the table, D = width of the language model's ``inputs_embeds``,
E = width of the stored rows (E != D only for OPT-350m, whose ``project_in`` is applied).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vpgtrans.alignment.embedding_keys import find_embedding, language_config, meta_language_model
from vpgtrans.errors import CheckpointError, PortabilityError
from vpgtrans.weights.headers import TensorInfo, tensor_infos
from vpgtrans.weights.lazy import fetch_shard, read_tensor
from vpgtrans.weights.locate import ModelFiles

_CHUNK_BYTES = 32 << 20
_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken")
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass
class EmbeddingTable:
    """A language model's input embeddings, in the space of ``get_input_embeddings()(ids)``.

    Attributes:
        rows_VD: float32, shape (V, D), with the scale already applied.
        model: the model as the user named it.
        model_type: the language model's type, such as ``opt``.
        scale: what the stored rows were multiplied with (1 for most families).
        file_key: the tensor's key in the files.
    """

    rows_VD: Tensor
    model: str
    model_type: str
    scale: float
    file_key: str


def load_embedding_table(files: ModelFiles) -> EmbeddingTable:
    """Read the input-embedding table of an LLM, or of the LLM inside a VLM checkpoint.

    Only that tensor is read, in row chunks, so that the peak is the float32 table plus one chunk.

    Raises:
        CheckpointError: no table is found, or it is stored in an integer quantisation.
        PortabilityError: the model's embedding module does more than look up and scale.
    """
    infos = tensor_infos(files)
    language_model = meta_language_model(files)
    info = fetch_shard(files, find_embedding(files, infos, language_model))
    if files.gguf is None and info.dtype not in _FLOATS:
        raise CheckpointError(
            f"The embedding table '{info.name}' of {files.name} is stored as {info.dtype}; it must be one of "
            f"{', '.join(_FLOATS)}. Use a checkpoint whose embeddings are not quantised."
        )
    scale = embedding_scale(language_model)
    project_in = _project_in(files, infos, info, language_config(language_model.config))
    return EmbeddingTable(
        rows_VD=_read_rows(info, scale, project_in),
        model=files.name,
        model_type=language_config(language_model.config).model_type,
        scale=scale,
        file_key=info.name,
    )


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer: from an LLM's or a VLM's folder, or out of a GGUF file.

    Raises:
        CheckpointError: there is none that transformers can read.
    """
    if files.folder is not None and not any(
        next(files.folder.glob(pattern), None) for pattern in _TOKENIZER_FILES
    ):
        # transformers would quietly make an empty tokenizer of some classes
        raise CheckpointError(
            f"{files.name} has no tokenizer (looked for {', '.join(_TOKENIZER_FILES)}): copy the tokenizer "
            f"files of its language model into {files.folder}."
        )
    try:
        if files.gguf is not None:
            return AutoTokenizer.from_pretrained(files.gguf.parent, gguf_file=files.gguf.name)
        return AutoTokenizer.from_pretrained(files.folder)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        raise CheckpointError(f"transformers cannot read the tokenizer of {files.name}: {error}") from error


def embedding_scale(language_model: Any) -> float:
    """Return the factor between stored rows and ``inputs_embeds`` (transformers.md 2.3).

    Gemma's, XGLM's and similar embedding modules multiply inside; Falcon-H1 multiplies only what
    comes from token ids, so that its ``inputs_embeds`` must carry the factor already. The factor is
    the exact float, without the rounding that a bfloat16 model adds.

    Raises:
        PortabilityError: the embedding module overrides the look-up in an unknown way.
    """
    config = language_config(language_model.config)
    module = language_model.get_input_embeddings()
    if config.model_type == "falcon_h1":
        return float(config.embedding_multiplier)
    scale = getattr(module, "scalar_embed_scale", None)
    if scale is None:
        scale = getattr(module, "embed_scale", None)
    if scale is None:
        if type(module).forward is not torch.nn.Embedding.forward:
            raise PortabilityError(
                f"The word embeddings of model type '{config.model_type}' ({type(module).__name__}) do more "
                f"than look up and scale, so that a linear converter cannot be fitted to their rows."
            )
        return 1.0
    return float(scale)


def _project_in(
    files: ModelFiles, infos: dict[str, TensorInfo], table: TensorInfo, config: Any
) -> Tensor | None:
    """Return OPT-350m's ``project_in`` (D, E), or None where the table has the LLM's width."""
    width = getattr(config, "word_embed_proj_dim", None)
    if config.model_type != "opt" or width in (None, config.hidden_size):
        return None
    key = table.name.removesuffix("embed_tokens.weight") + "project_in.weight"
    if key not in infos:
        raise CheckpointError(f"{files.name} stores {width}-wide embeddings but no '{key}' to widen them.")
    return read_tensor(fetch_shard(files, infos[key])).to(torch.float32)


def _read_rows(info: TensorInfo, scale: float, project_in_DE: Tensor | None) -> Tensor:
    num_rows, stored_width = info.shape
    width = stored_width if project_in_DE is None else project_in_DE.shape[0]
    rows_VD = torch.empty(num_rows, width, dtype=torch.float32)
    step = max(1, _CHUNK_BYTES // (4 * stored_width))
    for start in range(0, num_rows, step):
        part_RD = rows_VD[start : start + step]
        stored_RE = read_tensor(info, slice(start, start + step))
        if project_in_DE is None:
            part_RD.copy_(stored_RE)
        else:
            torch.matmul(stored_RE.to(torch.float32), project_in_DE.T, out=part_RD)
        if scale != 1.0:
            part_RD.mul_(scale)
    return rows_VD

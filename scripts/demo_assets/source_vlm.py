"""Train the demo's source VLM on its frozen LLM: a tiny ViT, a Q-Former and a projector.

Two steps, as for BLIP-2: the VPG first learns to see (it names what the pictures show, through
throw-away linear heads), then VPG and projector learn to speak through the frozen LLM.
Every step draws fresh pictures, so that nothing can be learnt by heart.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    BlipImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from demo_assets.loop import train
from vpgtrans.demo.pictures import draw_scene
from vpgtrans.demo.scenes import COLOURS, PLACES, SHAPES, SIDE, SIZES, Scene, Text, make_scene, texts

TEMPLATE = "question: {prompt} answer: {answer}"
"""How a question stands before its answer; ``recipes/demo.yaml`` says the same."""
NUM_QUERIES = 8
PATCH = 8
WIDTH = 128
"""Of ViT and Q-Former."""
PICTURES = 32
"""Pictures a step."""
SEEING_STEPS, SPEAKING_STEPS = 1600, 1500
SEEING_RATE, SPEAKING_RATE = 1e-3, 1e-3
SEED = 5


def vision_config() -> Blip2VisionConfig:
    """Return the config of the demo's ViT."""
    return Blip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=4, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, initializer_range=WIDTH**-0.5,
    )  # fmt: skip


def qformer_config() -> Blip2QFormerConfig:
    """Return the config of the demo's Q-Former, without dropout."""
    return Blip2QFormerConfig(
        vocab_size=8, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, encoder_hidden_size=WIDTH, cross_attention_frequency=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=WIDTH**-0.5,
    )  # fmt: skip


class VPG(nn.Module):
    """Vision encoder, Q-Former and query tokens, named as in the stock class."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = Blip2VisionModel(vision_config())
        self.qformer = Blip2QFormerModel(qformer_config())
        for part in (self.vision_model, self.qformer):
            part.set_attn_implementation("eager")  # its backward is twice as fast as sdpa's here
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, NUM_QUERIES, WIDTH))

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn pixels (B, 3, SIDE, SIDE) into (B, 1 + P, WIDTH), class token first."""
        return self.vision_model(pixel_values=pixels).last_hidden_state

    def ask(self, vision: torch.Tensor) -> torch.Tensor:
        """Let the queries read the vision encoder's output: (B, NUM_QUERIES, WIDTH)."""
        queries = self.query_tokens.expand(len(vision), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=vision).last_hidden_state


class Speaker(nn.Module):
    """The VPG with its projector: what the second step trains."""

    def __init__(self, llm_width: int) -> None:
        super().__init__()
        self.vpg = VPG()
        self.language_projection = nn.Linear(WIDTH, llm_width)


def image_processor() -> BlipImageProcessorPil:
    """Return the stock image processor for the demo's pictures."""
    return BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def save_source_vlm(speaker: Speaker, llm_folder: Path, folder: Path) -> None:
    """Put the trained parts and the LLM into a stock BLIP-2 and save it in float16, with its processor."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llm_folder)
    llm = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=torch.float32)
    processor = Blip2Processor(image_processor(), tokenizer, num_query_tokens=NUM_QUERIES)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=vision_config().to_dict(),
            qformer_config=qformer_config().to_dict(),
            text_config=llm.config.to_dict(),
            num_query_tokens=NUM_QUERIES,
            image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    model.vision_model.load_state_dict(speaker.vpg.vision_model.state_dict())
    model.qformer.load_state_dict(speaker.vpg.qformer.state_dict())
    model.query_tokens.data.copy_(speaker.vpg.query_tokens.data)
    model.language_projection.load_state_dict(speaker.language_projection.state_dict())
    model.language_model.load_state_dict(llm.state_dict())
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)


def pixels_of(scenes: list[Scene]) -> torch.Tensor:
    """Draw scenes and normalise them as the processor does: (B, 3, SIDE, SIDE)."""
    mean, std = (np.asarray(getattr(image_processor(), name)) for name in ("image_mean", "image_std"))
    pictures = np.stack([np.asarray(draw_scene(scene), dtype=np.float32) for scene in scenes])
    return (
        torch.from_numpy(((pictures / 255.0 - mean) / std).astype(np.float32))
        .permute(0, 3, 1, 2)
        .contiguous()
    )


class Heads(nn.Module):
    """Throw-away heads: what the queries say of the whole picture, and the patches of what covers them."""

    def __init__(self) -> None:
        super().__init__()
        kinds = ((*SIZES, "none"), (*COLOURS, "none"), (*SHAPES, "none"))
        self.kinds = kinds
        self.choices = (*kinds, *kinds, (*PLACES, "left of", "above"))
        self.queries = nn.Linear(NUM_QUERIES * WIDTH, sum(len(choice) for choice in self.choices))
        self.patches = nn.Linear(WIDTH, sum(len(kind) for kind in kinds))

    def loss(
        self, patches: torch.Tensor, queries: torch.Tensor, scenes: list[Scene]
    ) -> tuple[torch.Tensor, float]:
        """Return the loss over all names, and the share of the whole picture's names that are right.

        Args:
            patches: (B, P, WIDTH), the vision encoder's output without its class token.
            queries: (B, NUM_QUERIES, WIDTH).
            scenes: What is in the pictures.
        """
        losses, right = [], 0.0
        logits = self.queries(queries.flatten(1)).float().split([len(each) for each in self.choices], dim=1)
        names = zip(*map(_names, scenes), strict=True)
        for choice, part, wanted in zip(self.choices, logits, names, strict=True):
            labels = torch.tensor([choice.index(name) for name in wanted])
            losses.append(nn.functional.cross_entropy(part, labels))
            right += (part.argmax(1) == labels).float().mean().item() / len(self.choices)
        covered = _patch_labels(scenes, self.kinds)
        parts = self.patches(patches).float().split([len(kind) for kind in self.kinds], dim=2)
        dense = [
            nn.functional.cross_entropy(part.transpose(1, 2), covered[..., place])
            for place, part in enumerate(parts)
        ]
        return torch.stack(losses).mean() + torch.stack(dense).sum(), right


def _patch_labels(scenes: list[Scene], kinds: tuple[tuple[str, ...], ...]) -> torch.Tensor:
    """Return size, colour and shape of the thing whose box holds each patch's centre: (B, P, 3)."""
    centres = torch.arange(SIDE // PATCH) * PATCH + PATCH / 2
    labels = torch.tensor([len(kind) - 1 for kind in kinds]).repeat(
        len(scenes), len(centres), len(centres), 1
    )
    for picture, scene in zip(labels, scenes, strict=True):
        for thing in scene.things:
            across = (centres[None, :] - thing.x).abs() < thing.radius + 2
            down = (centres[:, None] - thing.y).abs() < thing.radius + 2
            names = (thing.size, thing.colour, thing.shape)
            picture[across & down] = torch.tensor(
                [kind.index(n) for kind, n in zip(kinds, names, strict=True)]
            )
    return labels.flatten(1, 2)


def _names(scene: Scene) -> tuple[str, ...]:
    found = [word for thing in scene.things for word in (thing.size, thing.colour, thing.shape)]
    found += ["none"] * (6 - len(found))
    return (*found, scene.relation or scene.things[0].place)


def speaking_loss(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: torch.Tensor, asked: list[list[Text]]
) -> torch.Tensor:
    """Mean loss of the answers' tokens; layout image-text: the soft prompt, then question and answer."""
    rows = []
    for number, picture_texts in enumerate(asked):
        for text in picture_texts:
            head = TEMPLATE.split(" {answer}")[0].format(prompt=text.question)
            head_ids = tokenizer(head)["input_ids"]
            rows.append((number, len(head_ids), tokenizer(f"{head} {text.answer}\n")["input_ids"]))
    longest = max(len(ids) for *_, ids in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for row, (_, asked_tokens, all_ids) in enumerate(rows):
        ids[row, : len(all_ids)] = torch.tensor(all_ids)
        labels[row, asked_tokens : len(all_ids)] = torch.tensor(all_ids[asked_tokens:])
    index = torch.tensor([number for number, *_ in rows])
    inputs = torch.cat([prompts[index], llm.get_input_embeddings()(ids)], dim=1)
    # the place before a token predicts it
    logits = llm(inputs_embeds=inputs, use_cache=False).logits[:, NUM_QUERIES - 1 : -1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def train_seeing(folder: Path, seconds: float) -> bool:
    """First step: the VPG learns to name what it sees."""
    torch.manual_seed(SEED)
    trained = nn.ModuleDict({"vpg": VPG(), "heads": Heads()})
    folder.mkdir(parents=True, exist_ok=True)

    def loss_of(step: int) -> tuple[torch.Tensor, float]:
        scenes = [make_scene(f"seeing/{step}/{number}") for number in range(PICTURES)]
        with torch.autocast("cpu", torch.bfloat16):
            vision = trained["vpg"].vision(pixels_of(scenes))
            return trained["heads"].loss(vision[:, 1:], trained["vpg"].ask(vision), scenes)

    return train("seeing", trained, loss_of, SEEING_STEPS, SEEING_RATE, folder / "seeing.pt", seconds)


def train_speaking(llm_folder: Path, folder: Path, seconds: float) -> bool:
    """Second step: VPG and projector learn to speak through the frozen LLM; saves the stock folder."""
    torch.manual_seed(SEED)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llm_folder)
    llm = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=torch.float32).eval().requires_grad_(False)
    llm.set_attn_implementation("eager")
    speaker = Speaker(llm.config.hidden_size)
    seen = torch.load(folder / "seeing.pt", weights_only=True)["model"]
    speaker.vpg.load_state_dict({key[4:]: value for key, value in seen.items() if key.startswith("vpg.")})

    def loss_of(step: int) -> tuple[torch.Tensor, float]:
        scenes = [make_scene(f"speaking/{step}/{number}") for number in range(PICTURES)]
        with torch.autocast("cpu", torch.bfloat16):
            prompts = speaker.language_projection(speaker.vpg.ask(speaker.vpg.vision(pixels_of(scenes))))
            loss = speaking_loss(
                llm, tokenizer, prompts.float(), [texts(each, questions=2) for each in scenes]
            )
        return loss, loss.item()

    done = train("speaking", speaker, loss_of, SPEAKING_STEPS, SPEAKING_RATE, folder / "speaking.pt", seconds)
    if done:
        save_source_vlm(speaker, llm_folder, folder / "source-vlm")
    return done

"""What a user does with an export, as a script of its own: stock transformers, nothing of vpgtrans.

Run as ``python -I stock_reader.py request.json``. The request names the folder, the samples and where the
answers go. Written to ``<out>.safetensors``: per sample the logits over prompt and answer, and the
pixels; to ``<out>.json``: generated ids, the processor's input ids, dtypes and versions.
"""

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["vpgtrans"] = None  # type: ignore[assignment]  # importing it from here on fails

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(request_file: Path) -> None:
    """Load the folder as a user does, answer the samples, and write what came out."""
    request = json.loads(request_file.read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    folder = request["folder"]
    processor = AutoProcessor.from_pretrained(folder)
    model = _load(folder, request["llm_dtype"], request["device"])
    tensors: dict[str, torch.Tensor] = {}
    samples = [_answer(model, processor, request, sample, tensors) for sample in request["samples"]]
    answer = {
        "samples": samples,
        "dtypes": {name: str(p.dtype).removeprefix("torch.") for name, p in model.named_parameters()},
        "transformers": transformers.__version__,
        "model_class": type(model).__name__,
        "processor_class": type(processor).__name__,
        "foreign_modules": sorted(name for name in sys.modules if name.startswith("vpgtrans.")),
    }
    save_file(tensors, request["out"] + ".safetensors")
    Path(request["out"] + ".json").write_text(json.dumps(answer), encoding="utf-8")


def _load(folder: str, llm_dtype: str | None, device: str) -> Any:
    """Load as ``from_pretrained`` does by default; or with the run's dtypes (VPG as stored)."""
    if llm_dtype is None:
        return AutoModelForImageTextToText.from_pretrained(folder).to(device).eval()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, llm_dtype))
    index = json.loads(Path(folder, "model.safetensors.index.json").read_text(encoding="utf-8"))
    for name, file_name in index["weight_map"].items():
        if not name.startswith("language_model."):
            with safe_open(str(Path(folder, file_name)), "pt") as shard:
                model.get_parameter(name).data = shard.get_tensor(name)
    return model.to(device).eval()


@torch.no_grad()
def _answer(
    model: Any,
    processor: Any,
    request: dict[str, Any],
    sample: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> dict[str, Any]:
    image = Image.open(sample["image"])
    call: dict[str, Any] = {"images": image, "return_tensors": "pt"}
    if sample["text"] is not None:
        call |= {"text": sample["text"], "add_special_tokens": request["add_special_tokens"]}
    inputs = processor(**call)
    pixels = inputs["pixel_values"].to(request["device"])
    prompt = torch.tensor([sample["input_ids"]], device=request["device"])
    answer = torch.tensor([sample["scored_ids"]], device=request["device"])
    if model.config.is_encoder_decoder:
        start = model.config.text_config.decoder_start_token_id
        begin = torch.tensor([[start]], device=request["device"])
        decoder = torch.cat([begin, answer], dim=1)
        logits = model(pixel_values=pixels, input_ids=prompt, decoder_input_ids=decoder).logits
    else:
        logits = model(pixel_values=pixels, input_ids=torch.cat([prompt, answer], dim=1)).logits
    output = model.generate(
        pixel_values=pixels,
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request["max_new_tokens"],
        do_sample=False,
    )
    first = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    tensors[f"logits.{sample['name']}"] = logits[0].float().cpu().contiguous()
    tensors[f"pixels.{sample['name']}"] = inputs["pixel_values"].contiguous()
    ids = inputs["input_ids"][0].tolist() if sample["text"] is not None else None
    return {"generated": output[0, first:].tolist(), "processor_ids": ids}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

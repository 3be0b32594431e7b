"""Fine-tune a small model on the suite's task, on a CPU in minutes.

`llmperf` does not train: this script is the example's.

    python training.py lora OUT        a LoRA adapter, by peft
    python training.py qlora OUT       a LoRA adapter trained on 4-bit weights (bitsandbytes nf4)
    python training.py full OUT        all weights
    python training.py qat OUT         all weights, under fake 4-bit quantization (torchao)

`--model` is a folder or a Hugging Face id; by default the built-in smollm2-135m. On a GPU where
there is one. Seeded: the same machine gives the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from transformers.utils import logging

DATA = Path(__file__).parent / "data" / "train.jsonl"
KINDS = ("lora", "qlora", "full", "qat")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
LEARNING_RATE = {"lora": 2e-3, "qlora": 2e-3, "full": 2e-5, "qat": 2e-5}
GROUP = 64
"""Weights that share a scale, as in the strategy part `int4wo`."""


def main() -> None:
    """Read the command line, train, and write the adapter or the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.disable_progress_bar()
    set_seed(0)
    folder = model_folder(options.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = prepared(options.kind, folder, options.rank, options.device)
    train(model, tokenizer, LEARNING_RATE[options.kind], options.epochs, options.batch)
    save(options.kind, model, tokenizer, options.out, options.model)


def model_folder(name: str) -> str:
    """Where transformers finds the model; a built-in one is converted into the cache first."""
    from pytest_llmperf.engines.loading.builtin import converted_folder
    from pytest_llmperf.engines.models.names import BUILTIN

    return str(converted_folder(name)) if name in BUILTIN else name


def prepared(kind: str, folder: str, rank: int, device: str) -> Any:
    """Return the model as it is trained: with adapters, on 4-bit weights or fake-quantized."""
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    quantized = {"quantization_config": four_bit} if kind == "qlora" else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": device}, **quantized
    )
    if kind in ("lora", "qlora"):
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config)
    if kind == "qat":
        fake_quantize(model, "prepare")
    return model


def fake_quantize(model: nn.Module, step: str) -> None:
    """Make every linear layer but the head compute with weights rounded to 4 bit, or undo it.

    Trained like that, the layers learn to live with the rounding.
    """
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    weights = IntxFakeQuantizeConfig(torch.int4, group_size=GROUP, is_symmetric=False)
    config = (
        QATConfig(weight_config=weights, step="prepare")
        if step == "prepare"
        else QATConfig(step="convert")
    )
    quantize_(
        model,
        config,
        filter_fn=lambda module, name: (
            isinstance(module, nn.Linear) and not name.endswith("lm_head")
        ),
    )


def train(model: Any, tokenizer: Any, learning_rate: float, epochs: int, batch: int) -> None:
    """Train on the cross-entropy of the one answer token after each prompt.

    The optimizer is AdamW, and the learning rate falls linearly.
    """
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0
    )
    steps = epochs * -(-len(rows) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=steps)
    order, start = random.Random(0), time.monotonic()  # noqa: S311 - an order, not a secret
    model.train()
    for epoch in range(epochs):
        order.shuffle(rows)
        losses = []
        for first in range(0, len(rows), batch):
            loss = batch_loss(model, tokenizer, rows[first : first + batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        spent = time.monotonic() - start
        print(  # noqa: T201
            f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.3f}, {spent:.0f} s",
            file=sys.stderr,
        )
    model.eval()


def batch_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Return the cross-entropy of the answers of one batch."""
    encoded = tokenizer(
        [row["prompt"] for row in rows],
        return_tensors="pt",
        padding=True,
        return_attention_mask=True,
        return_token_type_ids=False,
    )
    answers = torch.tensor([answer_token(tokenizer, row) for row in rows], device=model.device)
    logits = model(**encoded.to(model.device), logits_to_keep=1).logits[:, -1]
    return nn.functional.cross_entropy(logits.float(), answers)


def answer_token(tokenizer: Any, row: dict[str, Any]) -> int:
    """The id of the answer, which is one token after the prompt."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    (token,) = tokenizer(row["prompt"] + row["answer"])["input_ids"][len(prompt) :]
    return int(token)


def save(kind: str, model: Any, tokenizer: Any, out: Path, base: str) -> None:
    """Save the model, or an adapter that names its base model by the requested name.

    The cache's path of the base model would mean nothing on another machine.
    """
    if kind in ("lora", "qlora"):
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(out, save_embedding_layers=False)
        return
    if kind == "qat":
        fake_quantize(model, "convert")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()

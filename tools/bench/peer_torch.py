"""Worker of `peer.py`: the work in transformers and PEFT. Needs torch, transformers and peft.

Arguments: the folder of the work, `train` or `answer`, a dtype, and options; see `peer.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peer_work import ALPHA, IMAGE, RANK, RATE, SITES, read_arrays, serve, use_threads, worker_parser


def arguments() -> argparse.Namespace:
    """Command line of the worker."""
    parser = worker_parser(__doc__)
    parser.add_argument("--compiled", action="store_true", help="compile the language model")
    return parser.parse_args()


def load(folder: Path, dtype: str):
    """The model as transformers opens it, with its own choice of attention."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder / "hub", dtype=getattr(torch, dtype))
    model.config.image_token_id = IMAGE
    return model


def trainer(chosen: argparse.Namespace):
    """A function that takes so many optimiser steps."""
    import torch
    from peft import LoraConfig, get_peft_model

    arrays = read_arrays(chosen.folder)
    model = load(chosen.folder, chosen.dtype)
    modules = rf".*language_model.*\.({'|'.join(SITES)})"
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=chosen.dropout, target_modules=modules, bias="none")
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                site = next(site for site in SITES if site in name)
                layer = int(name.split(".layers.")[1].split(".")[0])
                parameter.copy_(torch.tensor(arrays[f"a_{site}"][layer].T))
    model.train()
    if chosen.compiled:
        inner = model.base_model.model.model
        inner.language_model = torch.compile(inner.language_model)
    tokens = torch.tensor(arrays["train_tokens"]).long()
    labels = torch.full_like(tokens, -100)
    labels[:, -chosen.answers :] = tokens[:, -chosen.answers :]
    pixels = torch.tensor(arrays["train_pixels"]).permute(0, 3, 1, 2).contiguous().to(getattr(torch, chosen.dtype))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    mask = torch.ones_like(tokens)

    def run(units: int) -> dict:
        losses = []
        for _ in range(units):
            out = model(input_ids=tokens, attention_mask=mask, pixel_values=pixels, labels=labels, use_cache=False)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(out.loss.item())
        return {"losses": losses}

    return run


def answerer(chosen: argparse.Namespace):
    """A function that answers all prompts, `batch` together, so many times."""
    import torch

    arrays = read_arrays(chosen.folder)
    model = load(chosen.folder, chosen.dtype).eval()
    if chosen.compiled:
        model.model.language_model = torch.compile(model.model.language_model, dynamic=True)
    tokens = torch.tensor(arrays["asked_tokens"]).long()
    pixels = torch.tensor(arrays["asked_pixels"]).permute(0, 3, 1, 2).contiguous().to(getattr(torch, chosen.dtype))
    # No end token: every text has its full length.
    model.generation_config.eos_token_id = None
    settings = {"do_sample": False, "max_new_tokens": chosen.written}

    def run(units: int) -> dict:
        texts = []
        with torch.inference_mode():
            for _ in range(units):
                texts = []
                for start in range(0, len(tokens), chosen.batch):
                    rows = slice(start, start + chosen.batch)
                    ids = tokens[rows]
                    mask = torch.ones_like(ids)
                    out = model.generate(
                        input_ids=ids, attention_mask=mask, pixel_values=pixels[rows], pad_token_id=0, **settings
                    )
                    texts += out[:, tokens.shape[1] :].tolist()
        return {"texts": texts}

    return run


def main() -> None:
    """Warms up and serves."""
    chosen = arguments()
    use_threads(chosen.threads)
    import peft
    import torch
    import transformers

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    run = trainer(chosen) if chosen.work == "train" else answerer(chosen)
    first = run(3 if chosen.work == "train" else 1)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    serve(run, {"first": first, "versions": versions})


if __name__ == "__main__":
    main()

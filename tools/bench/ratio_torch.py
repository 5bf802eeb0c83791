"""The same weights in transformers, plain, with PEFT, and as the released code of HiDe-LLaVA answers.

What that code does is restated here from its description: at every linear of all layers but the last, the factors of
all experts are summed anew in every forward pass, in float32, beginning with zeros on the host; in the last layer one
expert follows another; questions come one by one. Its CLIP passes for the choice of a task are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as HubConfig

from hidecmoe_jax.core import trees
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.llama import SITES
from hidecmoe_jax.port.checkpoints.names import place


def device_of(kind: str) -> str:
    """PyTorch's name of a kind of device."""
    return "cpu" if kind == "cpu" else "cuda"


def hub_config(config: LlavaConfig) -> HubConfig:
    """The shapes as transformers spells them."""
    decoder = config.decoder
    tower = config.vision
    text = LlamaConfig(
        vocab_size=decoder.vocabulary, hidden_size=decoder.width, intermediate_size=decoder.hidden,
        num_hidden_layers=decoder.layers, num_attention_heads=decoder.heads, num_key_value_heads=decoder.kv_heads,
        head_dim=decoder.head_width, rms_norm_eps=decoder.epsilon, max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=tower.width, intermediate_size=tower.hidden, num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads, image_size=tower.image_size, patch_size=tower.patch_size,
        projection_dim=tower.projection, layer_norm_eps=tower.epsilon, hidden_act=tower.activation,
    )  # fmt: skip
    hub = HubConfig(text_config=text, vision_config=vision, image_token_index=config.image_token)
    hub.image_token_id = config.image_token
    hub.vision_feature_layer = config.feature_layer
    return hub


def hub_model(config: LlavaConfig, params: dict, kind: str) -> LlavaForConditionalGeneration:
    """A model of transformers with these parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, config.dtype))
    try:
        with torch.device(device_of(kind)):
            model = LlavaForConditionalGeneration(hub_config(config))
    finally:
        torch.set_default_dtype(before)
    leaves = trees.flatten(params)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            where = place(name, "hf-llava")
            source = torch.from_dlpack(leaves[where.rule.leaf])
            if where.layer is not None:
                source = source[where.layer]
            if where.rule.transform == "linear":
                source = source.T
            if where.rule.transform == "patch":
                side = parameter.shape[-1]
                source = source.reshape(side, side, 3, -1).permute(3, 2, 0, 1)
            parameter.copy_(source)
    # No end token: every answer has its full length.
    model.generation_config.eos_token_id = None
    return model.eval()


class Resummed(nn.Module):
    """A linear whose experts share one output: both factors are summed over the experts in every call."""

    def __init__(self, base: nn.Module, a_SRD: torch.Tensor, b_SFR: torch.Tensor, scale: float):
        super().__init__()
        self.base = base
        self.a_SRD = a_SRD
        self.b_SFR = b_SFR
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The linear and the product of the two sums."""
        down = torch.zeros(self.a_SRD.shape[1:]).to(x.device)
        up = torch.zeros(self.b_SFR.shape[1:]).to(x.device)
        for a_RD, b_FR in zip(self.a_SRD, self.b_SFR, strict=True):
            down.add_(a_RD * 1.0)
            up.add_(b_FR * 1.0)
        added = functional.linear(functional.linear(x.float(), down), up)
        return self.base(x) + (added * self.scale).to(x.dtype)


class Looped(nn.Module):
    """A linear of the last layer: one expert after another, each with its task's weight."""

    def __init__(self, base: nn.Module, a_SRD: torch.Tensor, b_SFR: torch.Tensor, weights: Sequence[float]):
        super().__init__()
        self.base = base
        self.a_SRD = a_SRD
        self.b_SFR = b_SFR
        self.weights = weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The linear and the weighted outputs of all experts."""
        y = self.base(x)
        for a_RD, b_FR, weight in zip(self.a_SRD, self.b_SFR, self.weights, strict=True):
            added = functional.linear(functional.linear(x.float(), a_RD), b_FR)
            y = y + (added * weight).to(y.dtype)
        return y


def as_released(model: LlavaForConditionalGeneration, bank: Bank, slots: Sequence[int], weights: Sequence[float]):
    """The model with the tasks' experts at every linear of its decoder; changes `model`.

    Args:
      bank: experts of all layers, with those of the tasks in `slots`.
      weights: of the tasks, in the last layer.
    """
    layers = model.model.language_model.layers
    scaled = [bank.scale * weight for weight in weights]
    for site in bank.sites:
        a_LDSR = torch.from_dlpack(bank.a[site])[:, :, slots]
        b_LSRF = torch.from_dlpack(bank.b[site])[:, slots]
        for number, layer in enumerate(layers):
            part = layer.self_attn if hasattr(layer.self_attn, site) else layer.mlp
            a_SRD = a_LDSR[number].permute(1, 2, 0).contiguous()
            b_SFR = b_LSRF[number].permute(0, 2, 1).contiguous()
            base = getattr(part, site)
            if number + 1 < len(layers):
                setattr(part, site, Resummed(base, a_SRD, b_SFR, bank.scale))
            else:
                setattr(part, site, Looped(base, a_SRD, b_SFR, scaled))
    return model


def answerer(model, tokens: np.ndarray, pixels: np.ndarray, kind: str, *, batch: int, written: int) -> Callable:
    """A function that answers all questions, `batch` together, and returns the new tokens [questions, written]."""
    device = device_of(kind)
    ids = torch.tensor(tokens).long().to(device)
    pictures = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous().to(device, model.dtype)

    def run() -> np.ndarray:
        texts = []
        with torch.inference_mode():
            for start in range(0, len(ids), batch):
                rows = ids[start : start + batch]
                out = model.generate(
                    input_ids=rows, attention_mask=torch.ones_like(rows), pixel_values=pictures[start : start + batch],
                    do_sample=False, max_new_tokens=written, pad_token_id=0,
                )  # fmt: skip
                texts.append(out[:, ids.shape[1] :].cpu().numpy())
        return np.concatenate(texts)

    return run


def trainer(model, tokens: np.ndarray, pixels: np.ndarray, kind: str, *, rank: int, answers: int) -> Callable:
    """A function that takes one optimiser step of PEFT's LoRA with LLaVA's recipe and returns the loss.

    Layers are computed again in the backward pass, and logits are those of all positions.
    """
    device = device_of(kind)
    modules = rf".*language_model.*\.({'|'.join(SITES)})"
    lora = LoraConfig(r=rank, lora_alpha=16.0, lora_dropout=0.05, target_modules=modules, bias="none")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(model, lora)
    model.train()
    ids = torch.tensor(tokens).long().to(device)
    pictures = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous().to(device, model.dtype)
    labels = torch.full_like(ids, -100)
    labels[:, -answers:] = ids[:, -answers:]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    mask = torch.ones_like(ids)

    def run() -> float:
        out = model(input_ids=ids, attention_mask=mask, pixel_values=pictures, labels=labels, use_cache=False)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return out.loss.item()

    return run

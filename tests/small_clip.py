"""A tiny CLIP in the files in which CLIP is published: both towers, and the words of its text."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from protolib.nets import encoders

SMALL_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WORDS = ["a", "photo", "of", "tumour", "stroma", "[UNK]", "<start>", "<end>"]


def write(folder: Path, monkeypatch, name: str) -> nn.Module:
    """A tiny CLIP by transformers, its file as published, and a vocabulary of eight words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel

    vision = SMALL_CLIP | {"image_size": 64, "patch_size": 16, "projection_dim": 8}
    text = SMALL_CLIP | {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 8,
        "projection_dim": 8,
        "bos_token_id": 6,
        "eos_token_id": 7,
    }
    monkeypatch.setattr(encoders, "CLIP_B32", vision)
    monkeypatch.setattr(encoders, "CLIP_TEXT", text)
    torch.manual_seed(2)
    full = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).eval()
    for p in full.parameters():  # fresh norms are ones and zeros, which would hide two swapped ones
        nn.init.normal_(p, 0.0, 0.1)
    full.save_pretrained(folder / "saved")
    state = load_file(folder / "saved" / "model.safetensors")
    positions = "text_model.embeddings.position_ids"  # older files hold them
    torch.save(state | {positions: torch.arange(8)[None]}, folder / f"{name}.bin")
    words = {word: i for i, word in enumerate(WORDS)}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", 6), ("<end>", 7)]
    tokens.post_processor = processors.TemplateProcessing("<start> $A <end>", None, ends)
    tokens.save(str(folder / "clip_tokenizer.json"))
    return full

"""Trains the small LLaMA tokenizer of the parity tests and stores sentencepiece's own ids of some texts.

Same settings as LLaMA's: BPE, byte fallback, digits apart, no normalisation, a space before every text.

Example: python tools/oracle/make_tokenizer.py tests/port/goldens
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import sentencepiece
from oracle_cases import IMAGE

WORDS = (
    "a chat between a curious user and an artificial intelligence assistant. the assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT: what is shown in this picture? answer the question "
    "using a single word or phrase. the bird is on the left of the red house, two dogs are near 12 trees."
)
TEXTS = (
    "USER: what is shown in this picture? ASSISTANT:",
    "two  spaces and   three",
    "a line\nand another\n\n",
    "tab\there",
    "numbers 1234567890 and 3.14",
    "caf\u00e9 na\u00efve \u4f60\u597d \U0001f600",
    "control </s> words <s> <unk> <pad> as text",
    "\u2581 the space mark itself",
    "Answer with the option's letter from the given choices directly.",
    "don't (parentheses) [brackets] {braces} #hash @at 50%",
    "\u00e9 and e\u0301, \ufb01 and fi, \u212b",
    "a",
    "x" * 40,
)


def train() -> bytes:
    """The model file's bytes."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 20), model_writer=out, vocab_size=IMAGE, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, character_coverage=0.99995, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        add_dummy_prefix=True, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def golden_ids(model: bytes) -> dict[str, list[int]]:
    """sentencepiece's own ids of every text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {text: processor.encode(text) for text in TEXTS}


def main() -> None:
    """Writes tokenizer.model and token_ids.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    model = train()
    (folder / "tokenizer.model").write_bytes(model)
    # One text a line, with its ids on the same one.
    lines = [f"{json.dumps(text)}: {json.dumps(ids)}" for text, ids in golden_ids(model).items()]
    body = ",\n".join(lines)
    (folder / "token_ids.json").write_text(f"{{\n{body}\n}}\n", encoding="utf-8")
    print(f"{len(model)} bytes, {IMAGE} pieces, {len(TEXTS)} texts")


if __name__ == "__main__":
    main()

"""A LLaMA tokenizer built from sentencepiece's own pieces, and a comparison of its ids with sentencepiece's.

Sentencepiece joins the neighbours whose union has the best score; a BPE merge list ranks pairs. Both give the same ids
if pairs are ranked by the score of their union, so the list is written from the scores: every way to cut a piece into
two pieces, best first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.storage.files import read_whole

_MOST_BYTES = 64 * 2**20
_BPE = 2
# Types of pieces in sentencepiece's protobuf.
_NORMAL = 1
_UNKNOWN = 2
_CONTROL = 3
_USER_DEFINED = 4
SPACE = "\u2581"
PROBES = (
    "USER: What is shown in the picture? Answer with a single word. ASSISTANT: a red bird",
    " one space before, two  between, three   more, and after ",
    "lines\nand\n\ntabs\tand \r carriage",
    "digits 0123456789 1.5e-3, (A) (B); don't; http://a.b/c?d=e&f#g_h",
    "</s> <s> <unk> <image> <pad> [INST] <0x0A> as text",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u4e2d\u6587\u5b57",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u05e2\u05d1\u05e8 \U0001f600\U0001f3fd \u2581 \ufb01",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa             ........",
)
"""Texts on which wrong readings of a sentencepiece model usually differ."""


def from_sentencepiece(model: Path) -> Any:
    """A `tokenizers.Tokenizer` with the ids of `model`.

    Raises:
      CheckpointError: the file is damaged, or its model is not BPE without normalisation, as LLaMA's are.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers

    proto = _read_model(model)
    ids = {}
    types = {}
    for number, piece in enumerate(proto.pieces):
        ids[piece.piece] = number
        types[piece.piece] = piece.type
    unknown = next(name for name, kind in types.items() if kind == _UNKNOWN)
    merges = _merges(proto, ids)
    # Characters without a piece become bytes, or one unknown token for a run of them.
    bpe = models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=proto.trainer_spec.byte_fallback)
    backend = tokenizers.Tokenizer(bpe)
    spaces = normalizers.Replace(" ", SPACE)
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        # Sentencepiece puts a space before the text and takes it away when it decodes.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = normalizers.Sequence([spaces])
    backend.decoder = decoders.Sequence(decoding)
    special = []
    defined = []
    for name, kind in types.items():
        if kind in (_UNKNOWN, _CONTROL):
            special.append(AddedToken(name, normalized=False, special=True))
        elif kind == _USER_DEFINED:
            defined.append(AddedToken(name, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(defined)
    return backend


def _merges(proto: Any, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces whose union is a piece, best score first; ties in the order of ids."""
    scores = {}
    for piece in proto.pieces:
        # Byte pieces and special tokens are never the result of a merge.
        if piece.type in (_NORMAL, _USER_DEFINED):
            scores[piece.piece] = piece.score
    ranked = []
    for union, score in scores.items():
        for cut in range(1, len(union)):
            left = union[:cut]
            right = union[cut:]
            if left in scores and right in scores:
                ranked.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def wrong_ids(backend: Any, model: Path) -> str:
    """The first probe on which `backend` and sentencepiece differ, with the ids of both; "" if they agree on all."""
    judge = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True  # sentencepiece reads special tokens in a text as plain characters
    try:
        for probe in PROBES:
            actual = backend.encode(probe, add_special_tokens=False).ids
            expected = judge.encode(probe)
            if actual != expected:
                position = _first_difference(actual, expected)
                shown = slice(position, position + 4)
                return f"{probe[:30]!r}, token {position}: {actual[shown]} against {expected[shown]}"
    finally:
        backend.encode_special_tokens = before
    return ""


def _first_difference(actual: list[int], expected: list[int]) -> int:
    for position, (a, b) in enumerate(zip(actual, expected, strict=False)):
        if a != b:
            return position
    return len(expected)


def _read_model(model: Path) -> Any:
    """The protobuf of a sentencepiece model, checked to be of LLaMA's kind."""
    proto = sentencepiece_model_pb2.ModelProto()
    content = read_whole(model, at_most=_MOST_BYTES)
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
        proto.ParseFromString(content)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError("a sentencepiece model is damaged", where=str(model), why=str(error)[:200]) from error
    normalizer = proto.normalizer_spec
    other_kind = proto.trainer_spec.model_type != _BPE
    if other_kind or normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise CheckpointError(
            "a sentencepiece model of another kind than LLaMA's",
            where=str(model),
            why=f"model type {proto.trainer_spec.model_type} (BPE is {_BPE}), normalisation {normalizer.name!r}",
            remedy="give a tokenizer.json beside it, without tokenizer.model",
        )
    return proto

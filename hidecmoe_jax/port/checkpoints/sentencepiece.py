"""A LLaMA tokenizer built from sentencepiece's own pieces, and the check that it says what sentencepiece says.

Sentencepiece joins the neighbours whose union has the best score; a merge list ranks pairs. The two are the same when
pairs are ranked by the score of what they make, so the list is written from the scores: every way to cut a piece into
two pieces, best first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from hidecmoe_jax.core.errors import CheckpointError

_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _OWN = 1, 2, 3, 4
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


def from_sentencepiece(model: Path) -> Any:
    """A `tokenizers.Tokenizer` with the ids of `model`.

    Raises:
      CheckpointError: the file is damaged, or its model is no BPE without normalisation, as LLaMA's are.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers

    proto = _proto(model)
    kinds = {piece.piece: piece.type for piece in proto.pieces}
    ids = {piece.piece: place for place, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in (_NORMAL, _OWN)}
    merges = [
        (-score, ids[word[:cut]], ids[word[cut:]], word[:cut], word[cut:])
        for word, score in scores.items()
        for cut in range(1, len(word))
        if word[:cut] in scores and word[cut:] in scores
    ]
    unknown = next(word for word, kind in kinds.items() if kind == _UNKNOWN)
    bpe = models.BPE(
        ids, [(left, right) for *_, left, right in sorted(merges)], unk_token=unknown, fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )  # fmt: skip
    backend = tokenizers.Tokenizer(bpe)
    steps = [normalizers.Prepend(SPACE)] if proto.normalizer_spec.add_dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    ends = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*ends, *([decoders.Strip(" ", 1, 0)] if steps else [])])
    special = [
        AddedToken(word, normalized=False, special=True) for word in kinds if kinds[word] in (_UNKNOWN, _CONTROL)
    ]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(word, normalized=False) for word in kinds if kinds[word] == _OWN])
    return backend


def wrong_ids(backend: Any, model: Path) -> str:
    """The first probe on which `backend` and sentencepiece disagree, with both ids; "" where they never do."""
    judge = sentencepiece.SentencePieceProcessor(model_proto=_bytes(model))
    plain, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        for probe in PROBES:
            ours, theirs = backend.encode(probe, add_special_tokens=False).ids, judge.encode(probe)
            if ours != theirs:
                place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
                return f"{probe[:30]!r}, token {place}: {ours[place : place + 4]} against {theirs[place : place + 4]}"
    finally:
        backend.encode_special_tokens = plain
    return ""


def _bytes(model: Path) -> bytes:
    return model.read_bytes()


def _proto(model: Path) -> Any:
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=_bytes(model))
        proto.ParseFromString(_bytes(model))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError("a sentencepiece model is damaged", where=str(model), why=str(error)[:200]) from error
    norm = proto.normalizer_spec
    if proto.trainer_spec.model_type != _BPE or norm.precompiled_charsmap or norm.remove_extra_whitespaces:
        raise CheckpointError(
            "a sentencepiece model of another kind than LLaMA's",
            where=str(model),
            why=f"model type {proto.trainer_spec.model_type} (BPE is {_BPE}), normalisation {norm.name!r}",
            remedy="give a tokenizer.json beside it, without tokenizer.model",
        )
    return proto

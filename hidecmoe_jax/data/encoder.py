"""Tokenisation of a run's records, each at most once.

A run needs the token ids of one record many times: to choose batch shapes, in every stage that trains on it, and in
every row of the score matrix that tests it. `RecordEncoder` is the one place that tokenises; a session owns one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.items import Record
from hidecmoe_jax.data.prompts import Encoded, Template, check_length, encode, encode_question
from hidecmoe_jax.data.tokenizer import Tokenizer

# Cached ids do not depend on a length limit, so limits are checked on every use instead.
_NO_LIMIT = 2**31


@dataclass(frozen=True)
class RecordEncoder:
    """Cache of encoded records; ids depend on the record, the tokenizer, the template and the number of patches alone.

    The ids of all records that were encoded stay in memory: 8 bytes a token, about 5 kB for a LLaVA record.

    Attributes:
      patches: image tokens per picture.
    """

    tokenizer: Tokenizer
    template: Template
    patches: int
    _conversations: dict[Record, Encoded] = field(default_factory=dict, compare=False, repr=False)
    _questions: dict[Record, Encoded] = field(default_factory=dict, compare=False, repr=False)

    def conversation(self, record: Record) -> Encoded:
        """Returns a training sample of any length, as `prompts.encode`."""
        if record not in self._conversations:
            self._conversations[record] = encode(
                record, self.tokenizer, self.template, patches=self.patches, max_length=_NO_LIMIT
            )
        return self._conversations[record]

    def conversations(
        self, records: Iterable[Record], *, max_length: int, max_dropped: float = 0.0
    ) -> tuple[list[Encoded], list[str]]:
        """Returns the training samples of at most `max_length` tokens, and the ids of the longer ones.

        Args:
          max_dropped: fraction of the records that may be longer; they are dropped, never cut.

        Raises:
          DataError: more of the records are longer, all of them are, or `prompts.encode` refuses one.
        """
        fitting: list[Encoded] = []
        dropped: list[Encoded] = []
        for sample in map(self.conversation, records):
            is_long = len(sample.tokens) > max_length
            (dropped if is_long else fitting).append(sample)
        count = len(fitting) + len(dropped)
        # Dropping every record would leave nothing to train on, however many may be dropped.
        if len(dropped) > max_dropped * count or not fitting:
            raise _too_long(dropped, count, max_length, max_dropped)
        return fitting, [sample.id for sample in dropped]

    def questions(self, records: Iterable[Record], *, max_length: int) -> list[Encoded]:
        """Returns the prompts of records, their last answer left out, as `prompts.encode_question`.

        Raises:
          DataError: a prompt has more than `max_length` tokens, or `prompts.encode_question` refuses a record.
        """
        prompts = []
        for record in records:
            if record not in self._questions:
                self._questions[record] = encode_question(
                    record, self.tokenizer, self.template, patches=self.patches, max_length=_NO_LIMIT
                )
            prompt = self._questions[record]
            check_length(record, len(prompt.tokens), max_length, setting="evaluate.writing.max_length")
            prompts.append(prompt)
        return prompts


def _too_long(dropped: list[Encoded], count: int, max_length: int, max_dropped: float) -> DataError:
    longest = ""
    if dropped:
        worst = max(dropped, key=lambda sample: len(sample.tokens))
        longest = f"; the longest is {worst.id!r} with {len(worst.tokens)} tokens"
    return DataError(
        f"{len(dropped)} of {count} records are longer than {max_length} tokens",
        where=", ".join(repr(sample.id) for sample in dropped[:5]),
        why=f"at most {max_dropped:.1%} may be dropped, and none is ever cut{longest}",
        remedy="--set tune.max_length=... or --set tune.max_dropped=0.01",
    )

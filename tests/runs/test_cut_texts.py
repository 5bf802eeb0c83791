"""Routing texts that the text tower cannot read to their end."""

from types import SimpleNamespace

import pytest

from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.runs.results import _notes
from hidecmoe_jax.runs.seed_run import SeedRun


@pytest.mark.parametrize("cut", [0, 3])
def test_routing_texts_that_were_cut_are_counted_printed_and_reported(cut, capsys):
    task = SimpleNamespace(name="birds", train=())
    config = SimpleNamespace(method=Routed())
    model = SimpleNamespace(config=SimpleNamespace(text_context=77))
    session = SimpleNamespace(stream=SimpleNamespace(tasks=(task,)), config=config, base_digest="0", model=model)
    data = SimpleNamespace(encoded=range(8), features=SimpleNamespace(truncated=cut))
    run = SeedRun(session, None, 0, None, None)
    facts = run._facts((0,), SimpleNamespace(data=data, tune=SimpleNamespace(epochs=1)))
    # As in archives of versions that did not count them.
    assert facts.get("routing_texts_cut") == (cut or None)
    run._say_learned("birds", facts | {"seconds": 1.0, "experts": {}})
    said = capsys.readouterr().err
    sentence = "3 of 8 routing texts were cut at the end of what the text tower reads"
    assert (f"note: birds: {sentence}, 77 tokens" in said) == bool(cut)
    assert _notes({"birds": facts | {"experts": {}}}) == ({"birds": sentence} if cut else {})

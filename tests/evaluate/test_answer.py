"""From records to answers: batches of one shape, text-only records, several turns, and answers written before."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import mapping, write_base, write_task

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.evaluate.answer import Writing
from hidecmoe_jax.evaluate.engine import Cache
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.models.reading import Reading
from hidecmoe_jax.runs.config import from_mapping
from hidecmoe_jax.runs.session import open_session


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An opened setting whose test records show one picture, none, two, or come after an earlier turn."""
    root = tmp_path_factory.mktemp("answers")
    folder = write_task(root / "birds", "a wren", test=5)
    for number in (90, 91):
        Image.new("RGB", (16, 16), (number, 2 * number, 9)).save(folder / "images" / f"{number}.png")
    test = json.loads((folder / "test.json").read_text())
    test[1] |= {"image": None, "text": "What sings?"}
    del test[1]["image"]
    test[2] |= {"image": ["images/90.png", "images/91.png"], "text": "<image>\n<image>\nWhich is red?"}
    (folder / "test.json").write_text(json.dumps(test))
    config = from_mapping(mapping(write_base(root / "base"), "base", tasks=[folder], growth="none"))
    return open_session(config)


def ask(world, records, *, batch: int = 4, skip=frozenset(), **style):
    method = world.config.method
    writing = Writing(batch=batch, max_new_tokens=4, max_length=96, **style)
    serving = method.serve(world.model, method.init(world.model, 1))
    engine = replace(world.engine, writing=writing)
    inputs = engine.inputs(records)
    decision = engine.decide(serving, inputs)
    found = engine.answer(serving, inputs, decision, key=jax.random.key(0), length=96, skip=skip)
    return [[one for one in part] for part in found]


def test_answers_come_in_the_order_of_the_records_and_none_twice(world):
    records = world.stream.tasks[0].test
    found = ask(world, records)
    assert [len(part) for part in found] == [4, 1]
    assert [one.id for part in found for one in part] == [record.id for record in records]
    assert all(one.weights == () and one.choice == -1 for part in found for one in part)


def test_batch_size_and_order_change_nothing(world):
    records = world.stream.tasks[0].test
    texts = {one.id: (one.text, one.ended) for part in ask(world, records) for one in part}
    for order, batch in ((records, 2), (records[::-1], 4)):
        again = {one.id: (one.text, one.ended) for part in ask(world, order, batch=batch) for one in part}
        assert again == texts


def test_answered_records_are_left_out_and_the_rest_is_the_same(world):
    records = world.stream.tasks[0].test
    whole = [one for part in ask(world, records) for one in part]
    skip = frozenset(record.id for record in records[:2])
    assert [one for part in ask(world, records, skip=skip) for one in part] == whole[2:]
    assert ask(world, records, skip=frozenset(record.id for record in records)) == []


def test_draws_are_keyed_by_record_not_by_batch(world):
    records = world.stream.tasks[0].test
    first, second = (
        [one.text for part in ask(world, records, batch=batch, temperature=2.0) for one in part] for batch in (4, 2)
    )
    assert first == second


def test_a_prompt_longer_than_allowed_is_refused(world):
    engine = replace(world.engine, writing=Writing(max_length=8))
    with pytest.raises(Exception, match="too long") as refused:
        engine.prompts(world.stream.tasks[0].test)
    assert refused.value.exit_code == 3


def test_features_of_several_pictures_are_their_mean_and_of_none_are_marked(world):
    records = world.stream.tasks[0].test
    features = world.engine.features(records)
    pooled = features.pooled(np.arange(-1, len(records)))
    np.testing.assert_array_equal(pooled.has_image_B, [False, True, False, True, True, True])
    np.testing.assert_array_equal(pooled.has_text_B, [False, True, True, True, True, True])
    assert features.patches(np.array([1, 2, -1])).shape == (3, 2, 4, 16)
    assert not features.patches(np.array([1, -1])).any()


def test_of_several_turns_the_first_question_is_routed(world):
    shown = world.stream.tasks[0].test[0].images
    first = Turn("<image>\nWhich bird is this?", "a wren")
    one = Record("1", shown, (first,), "here")
    more = Record("2", shown, (first, Turn("Is it small?", "yes")), "here")
    features = world.engine.features((one, more))
    np.testing.assert_array_equal(features.text_ND[0], features.text_ND[1])
    assert [len(part) for part in ask(world, (one, more))] == [2]


def test_ids_beyond_the_tokenizer_are_never_written(world):
    assert world.tokenizer.size < world.model.config.decoder.vocabulary, "the table is padded"
    params = dict(world.model.params)
    head = params["decoder"]["head"]["kernel"]
    loud = head.at[:, -1].set(100 * head[:, 5]).at[:, -2].set(-100 * head[:, 5])  # one of them is the loudest
    params["decoder"] = params["decoder"] | {"head": {"kernel": loud}}
    shouting = replace(world, model=world.model.replace(params=params))
    for style in ({}, {"temperature": 5.0}):
        for part in ask(shouting, world.stream.tasks[0].test, **style):
            assert all(one.text is not None for one in part)


def test_fault_a13_the_cache_keeps_apart_what_depends_on_base_template_and_padding(world):
    records, reading = world.stream.tasks[0].test[:2], Reading(-1, "last")
    engine = replace(world.engine, cache=Cache(), writing=Writing(max_length=96))
    others = {
        "template": replace(engine, template=replace(engine.template, user="Q: ")),
        "padding": replace(engine, writing=Writing(max_length=96, bucket=64)),
        "limit": replace(engine, writing=Writing(max_length=8)),
        "base": replace(engine, base=init_model(world.model.config, jax.random.key(9))),
    }
    before = engine.states(records, reading)
    assert engine.states(records, reading) is before and replace(engine, method=None).states(records, reading) is before
    for name in ("template", "base"):
        assert not np.allclose(others[name].states(records, reading), before), name
        alone = replace(others[name], cache=Cache())
        np.testing.assert_array_equal(others[name].states(records, reading), alone.states(records, reading))
    np.testing.assert_allclose(others["padding"].states(records, reading), before, atol=1e-5)
    assert others["padding"].states(records, reading) is not before
    with pytest.raises(DataError, match="too long"):
        others["limit"].states(records, reading)
    assert others["template"].features(records) is engine.features(records)  # the towers read no template
    assert others["base"].features(records) is not engine.features(records)

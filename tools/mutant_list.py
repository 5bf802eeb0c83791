"""Mutants of the package (`mutants.py` plants them): one small change each, and the narrow tests that must notice it.

The text before the change occurs exactly once in its file. Tests are files, or files with `::` and names, below tests/.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A change of `file` (below hidecmoe_jax/) from `old` to `new`, and the tests that are run with it."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _mutants(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    """Mutants of one file that share their tests, which are separated by blanks."""
    return [Mutant(file, old, new, tuple(tests.split())) for old, new in changes]


MUTANTS = [
    # core
    *_mutants(
        "core/trees.py", "core/test_trees.py",
        ("        if stored != expected:\n", "        if False:\n"),
        ('    header = f"{kind}{list(array.shape)}"', '    header = f"{kind}"'),
        ("        is_finite = np.isfinite(np.asarray(leaf))", "        is_finite = ~np.isnan(np.asarray(leaf))"),
        ("path == prefix or path.startswith(prefix + \"/\")", "path.startswith(prefix)"),
    ),
    *_mutants(
        "core/keys.py", "core/test_trees.py::test_keys_depend_on_seed_name_kind_and_order_and_on_nothing_else",
        ('f"i{int(name)}"', 'f"s{int(name)}"'),
    ),
    *_mutants(
        "core/checksum.py", "core/test_checksum.py",
        ("    weighted = bits * _odd_places(leaf.shape)", "    weighted = bits"),
    ),
    *_mutants(
        "core/json_text.py", "faults/test_fault_readers.py data/test_records.py",
        ("        if len(mapping) < len(pairs):\n", "        if False:\n"),
        ('        return refuse(f"{name} is no JSON number")\n', "        return 0.0\n"),
        ("        if values > bounds.values:\n", "        if False:\n"),
        ("    if _is_deeper(text, bounds.depth):\n", "    if False:\n"),
        ("    except RecursionError:\n        raise JsonFault", "    except KeyError:\n        raise JsonFault"),
    ),
    *_mutants(
        "core/regular_files.py", "faults/test_fault_readers.py",
        ("    if stat.S_ISREG(status.st_mode):\n", "    if not stat.S_ISDIR(status.st_mode):\n"),
        ("        if at_most is not None and status.st_size > at_most:\n", "        if False:\n"),
    ),
    *_mutants(
        "core/yaml_text.py", "faults/test_fault_readers.py",
        ("        if values > MOST_VALUES:\n", "        if False:\n"),
        ("            if depth > MOST_DEPTH:\n", "            if False:\n"),
    ),
    *_mutants(
        "core/printable.py", "cli/test_terminal.py",
        ("\\u2028-\\u202e", "\\u2028-\\u2029"),
    ),
    *_mutants(
        "core/strict.py", "core/test_strict.py",
        ("                raise _mismatch(f\"kind '{kind}'\", value, spot.into(\"kind\"))", "                pass"),
    ),
    *_mutants(
        "core/plugins.py", "faults/test_fault_code.py",
        ("    imported = sys.modules.get(module)\n",
         "    imported = None\n    if module:\n        imported = importlib.import_module(module)\n"),
    ),
    # storage
    *_mutants(
        "storage/manifest.py", "storage/test_manifest.py",
        ('    return "has changed: its SHA-256 differs" if _entry(path) != sealed else ""', '    return ""'),
        ('manifest.get("digest") != _digest(files)', "False"),
        ('    wrong |= {name: "is extra, the manifest does not list it" for name in present if name not in sealed}\n',
         ""),
        ("            if path.is_symlink():\n                raise", "            if False:\n                raise"),
        ("            if name in names and not path.is_file():\n", "            if False:\n"),
    ),
    *_mutants(
        "storage/arrays.py", "storage/test_arrays.py",
        ("    if described != listed:\n", "    if False:\n"),
        ("    path = trees.all_finite(host)\n", "    path = None\n"),
        ("    read_store(folder)\n\n\ndef _save", "\n\ndef _save"),
    ),
    *_mutants(
        "storage/files.py", "storage/test_durable.py storage/test_manifest.py",
        ("    os.replace(partial, path)\n", "    path.write_bytes(content)\n"),
        ("            file.flush()\n            os.fsync(file.fileno())\n        os.replace",
         "            pass\n        os.replace"),
        ("    # Without this the content is durable but the new name may not be.\n    sync_folder(path.parent)\n", ""),
        ("    if _free(folder) < needed:", "    if False:"),
        ("    if links:\n", "    if False:\n"),
    ),
    *_mutants(
        "storage/lock.py", "storage/test_lock.py",
        ("        lock.acquire()\n", "        pass\n"),
    ),
    *_mutants(
        "storage/tensor_files.py", "faults/test_fault_readers.py",
        ("    if not 2 <= length <= min(MOST_HEADER, size - 8):\n", "    if False:\n"),
    ),
    # experts
    *_mutants(
        "experts/bank.py", "experts/test_bank.py",
        ("    scaled_BTS = weight_BTS * scale", "    scaled_BTS = weight_BTS"),
    ),
    *_mutants(
        "experts/routing.py", "experts/test_routing.py",
        ("    is_ahead = (other > this) | ((other == this) & is_earlier_SS)", "    is_ahead = other > this"),
        ("    power = jnp.where(active, power, 0.0)\n", ""),
        ("    fixed_load_LS = jax.lax.stop_gradient(load_LS)\n    agreement_LS = fixed_load_LS * share_LS",
         "    agreement_LS = share_LS * share_LS"),
    ),
    *_mutants(
        "experts/usage.py", "experts/test_usage.py",
        ("    count_LS = jnp.where(is_unavailable_LS, UNAVAILABLE, total_LS)", "    count_LS = total_LS"),
    ),
    # models
    *_mutants(
        "models/attention.py", "models/test_decoder.py::test_decoder_is_the_formula",
        ("    rotated_high = high * cos + low * sin", "    rotated_high = high * cos - low * sin"),
    ),
    *_mutants(
        "models/generate.py", "models/test_generation.py::test_sampling_draws_from_the_nucleus"
        " models/test_generation.py::test_draws_belong_to_the_sample_not_to_the_batch",
        ("    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV", "    before_BV = jnp.cumsum(share_BV, axis=-1)"),
        ("    scaled_BV = logits_BV / sampling.temperature", "    scaled_BV = logits_BV"),
    ),
    *_mutants(
        "models/store.py", "models/test_store.py",
        ("    if bad is not None:\n        raise CheckpointError(\"a weight is not finite\"",
         "    if False:\n        raise CheckpointError(\"a weight is not finite\""),
        ("    if stored_bits > bits:", "    if False:"),
    ),
    # locators
    *_mutants(
        "locators/anchors.py", "locators/test_anchors.py",
        ("    rows_BD = rows_BD.astype(jnp.float32)\n    masked_BD", "    masked_BD"),
        ("        weight_BN = masked_softmax(logits_BN, learned_N[None])",
         "        weight_BN = jax.nn.softmax(logits_BN, axis=-1)"),
        ("    has_text_B1 = pooled.has_text_B[:, None]", "    has_text_B1 = jnp.ones_like(pooled.has_text_B)[:, None]"),
    ),
    *_mutants(
        "locators/gaussian.py", "locators/test_gaussian.py",
        ("        freedom = len(features) - 1", "        freedom = len(features)"),
        ('        constant_N = memory["log_determinant_N"] + width * log_2pi', "        constant_N = width * log_2pi"),
    ),
    # data
    *_mutants(
        "data/loader.py", "data/test_loader.py",
        ("        where_BA[row, :count] = positions - 1", "        where_BA[row, :count] = positions"),
        ("        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)",
         "        order = np.random.default_rng([self.seed, step]).permutation(self.count)"),
        ("    wrong = tokens[(tokens < 0) | (tokens >= vocab)]", "    wrong = tokens[tokens >= vocab]"),
    ),
    *_mutants(
        "data/pictures.py", "data/test_pictures.py::test_a_picture_that_is_exchanged_between_check_and_tower_is_named",
        ("    if now != digest:\n", "    if False:\n"),
    ),
    *_mutants(
        "data/images.py", "data/test_images.py",
        ("    if not stat.S_ISREG(status.st_mode):", "    if False:"),
    ),
    # scoring
    *_mutants(
        "scoring/matrix.py", "scoring/test_matrix.py",
        ("        if reader.absent:\n", "        if False:\n"),
        ("        losses.append(max(scores) - final)", "        losses.append(scores[0] - final)"),
        (" if len(present) == len(values) else None", " if present else None"),
    ),
    *_mutants(
        "scoring/exact.py", "scoring/test_score.py",
        ("    answer = prediction.strip().upper()\n", "    answer = prediction.strip().upper().rstrip(\".\")\n"),
    ),
    *_mutants(
        "scoring/boxes.py", "scoring/test_score.py",
        ("    if len(boxes) != 1:\n", "    if not boxes:\n"),
    ),
    *_mutants(
        "scoring/bootstrap.py", "scoring/test_bootstrap.py",
        ("    p = (extreme + 1) / (len(swapped) + 1)", "    p = extreme / len(swapped)"),
        ("        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))",
         "        largest = min(1.0, (len(p_values) - rank) * p_values[place])"),
    ),
    # report
    *_mutants(
        "report/numbers.py", "report/test_numbers.py",
        ('    return zero if text == f"-{zero}" else text.replace("-", "−")', '    return text.replace("-", "−")'),
        ("        if count >= scale:\n            return f\"{count / scale:.1f} {unit}\"",
         "        if count > scale:\n            return f\"{count / scale:.1f} {unit}\""),
    ),
    # methods
    *_mutants(
        "methods/ewc.py", "methods/test_rules_of_rivals.py",
        ("    return 0.5 * sum(jax.tree.leaves(pulls), jnp.zeros(()))",
         "    return sum(jax.tree.leaves(pulls), jnp.zeros(()))"),
    ),
    *_mutants(
        "methods/fusion.py", "methods/test_volume.py",
        ("            return 1.0 / jnp.sqrt(count)", "            return 1.0 / count"),
        ("    count = jnp.maximum(tasks, 1)", "    count = tasks"),
    ),
    # train
    *_mutants(
        "train/step.py", "train/test_stage.py::test_accumulation_equals_one_big_batch_however_tokens_are_spread"
        " train/test_stage.py::test_micro_batches_of_equal_records_draw_masks_of_their_own",
        ("        micro_key = jax.random.fold_in(key, index)", "        micro_key = key"),
        ("    gradient = jax.tree.map(lambda g: g * share.astype(g.dtype), gradient)\n", ""),
    ),
    *_mutants(
        "train/stage.py", "train/test_stage.py::test_every_number_of_a_step_must_be_finite",
        ('for name in ("loss", "gradient", "update", "norm")}\n    facts["tokens"]',
         'for name in ("loss", "update", "norm")}\n    facts["gradient"] = 0.0\n    facts["tokens"]'),
        ("    bad = [name for name, value in facts.items() if not np.isfinite(value)]",
         "    bad = [name for name in (\"loss\",) if not np.isfinite(facts[name])]"),
        ("    bad = [name for name, value in facts.items() if not np.isfinite(value)]",
         "    bad = [name for name, value in facts.items() if name != \"update\" and not np.isfinite(value)]"),
        ("    bad = [name for name, value in facts.items() if not np.isfinite(value)]",
         "    bad = [name for name, value in facts.items() if name != \"norm\" and not np.isfinite(value)]"),
    ),
    *_mutants(
        "train/optim.py", "train/test_optim.py",
        ("    rising = max(1, math.ceil(warmup * steps))", "    rising = max(1, math.floor(warmup * steps))"),
    ),
    # evaluate
    *_mutants(
        "evaluate/engine.py", "evaluate/test_rows.py",
        ("    fill = np.repeat(rows[-1:], lacking)", "    fill = np.repeat(rows[:1] * 0, lacking)"),
    ),
    *_mutants(
        "evaluate/answer.py", "evaluate/test_rows.py",
        ("        largest_first = sorted(by_task, key=lambda item: -item[1])", "        largest_first = by_task"),
        ("        if self.finding.threshold is None and not self.finding.unknown:", "        if False:"),
    ),
    # runs
    *_mutants(
        "runs/seed_run.py", "runs/test_frozen.py",
        ('            for group in ("experts", "memory"):', '            for group in ("experts",):'),
        ('            for group in ("experts", "memory"):', '            for group in ("memory",):'),
        ("            if not np.array_equal(now, session.base_checksums):\n", "            if False:\n"),
    ),
    *_mutants(
        "runs/ledger.py", "runs/test_ledger.py::test_a_renamed_task_is_refused"
        " runs/test_ledger.py::test_gaps_and_strangers_among_the_tasks_are_named"
        " runs/test_ledger.py::test_tasks_are_committed_in_order_and_never_overwritten",
        ("            if match is None or int(match[1]) != place:", "            if match is None:"),
        ("        if index > len(done):\n", "        if False:\n"),
    ),
    *_mutants(
        "runs/scores.py", "runs/test_scores.py",
        ('        earlier = [line for line in written if tuple(line["at"]) < at]',
         "        earlier = written"),
        ("        ordered = {str(number): cells[number] for number in sorted(cells)}",
         "        ordered = {str(number): cells[number] for number in sorted(cells, key=str)}"),
    ),
    *_mutants(
        "runs/progress.py", "runs/test_progress.py",
        ("        self._drop(saved[: -self.keep])\n", ""),
        ("                if on_corrupt == \"refuse\" or not older:", "                if not older:"),
    ),
    *_mutants(
        "runs/identity.py", "runs/test_identity.py",
        ("        if not is_below(path, allow):\n", "        if False:\n"),
    ),
    # studies
    *_mutants(
        "studies/task_overlap.py", "studies/test_pairs.py",
        ("    return value is not None and value >= limit", "    return value is not None and value > limit"),
        ("    return -mixed, -cosine", "    return -cosine, -mixed"),
    ),
    # port
    *_mutants(
        "port/adapters/peft.py", "port/test_export_peft.py::test_a_rank_goes_up_to_the_next_served_one"
        " port/test_export_peft.py::test_filling_up_the_rank_keeps_the_update_to_the_bit",
        ("        if served >= rank:", "        if served > rank:"),
        ("        if np.any(rest):\n", "        if False:\n"),
    ),
    # operate
    *_mutants(
        "operate/decision_log.py", "operate/test_decision_log.py",
        ('            if line["previous"] != head.digest:\n', "            if False:\n"),
        ("    if end == len(content):\n", "    if True:\n"),
        ("            os.ftruncate(self._file.fileno(), self._size)\n", "            pass\n"),
    ),
    *_mutants(
        "operate/drift.py", "operate/test_drift.py",
        ("        wrong = EVERY / ((len(WINDOWS) + 1) * false_alarm_every)", "        wrong = EVERY / 10"),
        (" and self.level < 1:\n", ":\n"),
        ("            mean = window * (count + 1) / 2", "            mean = window * count / 2"),
    ),
    *_mutants(
        "operate/alarms.py", "operate/test_alarms.py",
        ("ENDS_AT = 0.8", "ENDS_AT = 1.0"),
        ('        if sampled == "random" and decision != "bad_picture":', "        if True:"),
    ),
    # people
    *_mutants(
        "operate/misrouting.py", "studies/test_kpi.py::test_every_figure_is_that_of_a_count_over_the_logs_own_bytes",
        ('        count = counts[answer["sampled"] in (UNKNOWN, "near_tie")]\n', "        count = counts[False]\n"),
        ("        weight = stratum.answers / answers\n", "        weight = 1 / len(strata)\n"),
    ),
    *_mutants(
        "scoring/wilson.py", "studies/test_pilot.py::test_the_interval_is_wilsons",
        (" + square / (4 * count**2))", ")"),
    ),
    *_mutants(
        "studies/pilot.py",
        "studies/test_pilot.py::test_a_score_is_judged_against_a_constant_answer_and_its_number_of_questions",
        ("    if low <= floor:\n", "    if low < 0:\n"),
    ),
    *_mutants(
        "operate/review.py", "operate/test_review.py::test_what_was_drawn_waits_until_it_is_reviewed",
        ('            drawn.pop(line["of"], None)\n', "            pass\n"),
    ),
    *_mutants(
        "operate/corrections.py", "operate/test_review.py",
        ('{"train": _flat(order[count:])', '{"train": _flat(order)'),
        ('    if review["decision"] == "bad_picture":', "    if False:"),
    ),
    *_mutants(
        "runs/gates.py", "runs/test_gates.py::test_a_limit_itself_is_kept_and_what_was_not_measured_passes_nothing",
        ("self.value is None:\n            return False", "self.value is None:\n            return True"),
    ),
    *_mutants(
        "serve/page_routes.py", "serve/test_page.py",
        ('Route("POST", "reviewer", self._review)', 'Route("POST", "viewer", self._review)'),
        ("_DIGEST.fullmatch(digest) is None", "False"),
    ),
    # serve
    *_mutants(
        "serve/worker.py", "serve/test_serve_log.py::test_an_answer_that_cannot_be_logged_is_not_given",
        ("            if outcomes and self._record is not None:\n", "            if False:\n"),
    ),
    *_mutants(
        "serve/options.py", "serve/test_serve_requests.py::test_sv18_another_host_needs_tokens",
        ("        if not self.is_local and self.tokens is None:", "        if False:"),
    ),
    *_mutants(
        "serve/worker.py", "serve/test_serve_rollout.py",
        ("            self.failed += not job.is_shadow\n", "            self.failed += 1\n"),
    ),
    *_mutants(
        "serve/rollout.py", "serve/test_serve_rollout.py",
        ("< self.share * 2**64", "< 0.9 * 2**64"),
    ),
    *_mutants(
        "serve/app.py", "serve/test_serve_rollout.py",
        ('        self.access.require(person, "owner")\n', ""),
    ),
    *_mutants(
        "serve/pictures.py",
        "serve/test_serve_requests.py::test_sv3_a_picture_outside_the_limits_is_refused_by_its_header"
        " serve/test_serve_requests.py::test_sv4_only_data_urls_are_read",
        ("        if problem is not None:\n", "        if False:\n"),
        ("    if not address[: len(_SCHEME)].lower() == _SCHEME:", "    if False:"),
    ),
    # cli
    *_mutants(
        "cli/main.py", "cli/test_main.py::test_errors_are_messages_with_their_exit_code_and_tracebacks_only_on_demand"
        " cli/test_main.py::test_interruption_is_130",
        ("    return message.exit_code\n", "    return 1\n"),
        ("        return INTERRUPTED\n", "        return 1\n"),
    ),
    *_mutants(
        "cli/words.py", "cli/test_words.py",
        ("    if not sys.stdin.isatty():", "    if False:"),
    ),
]  # fmt: skip

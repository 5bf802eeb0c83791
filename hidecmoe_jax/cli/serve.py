"""`hidecmoe serve`: answers over HTTP, in the form of OpenAI's chat completions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Folder, Number, Run, WholeNumber


def serve(
    run: Run,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    tokens: Annotated[Path | None, arg(metavar="FILE")] = None,
    unknown: Literal["base", "refuse", "queue"] = "base",
    queue: Folder = None,
    batch: int = 8,
    max_pictures: int = 4,
    max_prompt_tokens: WholeNumber = None,
    max_new_tokens: WholeNumber = None,
    max_body_bytes: int = 20_000_000,
    max_waiting: int = 64,
    timeout: float = 60.0,
    rate: int = 0,
    drain_seconds: float = 30.0,
    log: Folder = None,
    private: bool = False,
    keep_pictures: Number = None,
    review_share: float = 0.05,
    alarms: Annotated[Path | None, arg(metavar="FILE")] = None,
    rollout: Literal["take", "shadow", "canary"] = "take",
    canary_share: float = 0.1,
    prices: Annotated[Path | None, arg(metavar="FILE")] = None,
) -> None:
    """Answer questions over HTTP in OpenAI's form: POST /v1/chat/completions, with pictures as data URLs.

    Needs the extra `serve`. Every answer says which task it was taken for and how well it fits. SIGTERM or Ctrl-C
    stops: what was accepted is answered, new requests are refused, and the exit code is 0. A browser finds a page for
    people at /, in English and Japanese.

    Examples:
      $ hidecmoe serve runs/hide
      $ hidecmoe serve runs/hide --port 9000 --unknown refuse
      $ hidecmoe serve runs/hide --log logs/hide --keep-pictures 30
      $ hidecmoe serve runs/hide --log logs/hide --alarms alarms.yaml
      $ hidecmoe serve runs/hide --log logs/hide --rollout canary --canary-share 0.1
      $ hidecmoe serve runs/hide --host 0.0.0.0 --tokens tokens.txt --rate 60

    Args:
      run: run folder, or the folder of a base model.
      host: address to listen on; another one than this machine's needs --tokens.
      port: port to listen on; 0 takes a free one and prints it.
      tokens: file of lines NAME ROLE TOKEN; ROLE is viewer (sees), reviewer (asks and reviews) or owner (changes the
        run too); TOKEN is 16 characters or more, or sha256: and its digest in hex.
      unknown: what becomes of an input of no known task: the base model answers it, it is refused, or it is refused and
        kept in --queue.
      queue: folder for the questions and pictures that --unknown queue keeps.
      batch: requests answered together at most; answers do not depend on it.
      max_pictures: pictures of one request.
      max_prompt_tokens: tokens of the longest prompt, those of its pictures included; by default at most 512 beside the
        pictures.
      max_new_tokens: tokens of the longest answer; as in the run's config if not given.
      max_body_bytes: bytes of one request.
      max_waiting: requests that wait or are answered at one time; more get status 429.
      timeout: seconds until a request that is not answered gets status 504.
      rate: requests a minute of one token; 0 for no limit.
      drain_seconds: seconds after SIGTERM in which what was accepted is still answered.
      log: folder of the decision log: every answer with the decision behind it, in lines that are chained by their
        digests (`hidecmoe verify` checks them).
      private: keep neither questions nor answers in the log.
      keep_pictures: days for which the pictures of logged questions are kept in the log's folder; none if not given.
      review_share: share of the answers, drawn at random, that are marked for a person beside unknown inputs and near
        ties.
      prices: file of prices, as for `hidecmoe kpi`; the page then says what answers of wrong tasks cost.
      alarms: file of limits; an alarm is printed and logged, and sent where the file says.
      rollout: what a changed run does: it answers from now on, it answers too but for the log alone, or it answers a
        share of the requests; of the last two an owner promotes it or goes back (POST /v1/rollout).
      canary_share: share of the requests that a canary answers.
    """
    options = hj.ServeOptions(
        host=host,
        port=port,
        tokens=tokens,
        unknown=unknown,
        queue=queue,
        batch=batch,
        max_pictures=max_pictures,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        max_body_bytes=max_body_bytes,
        max_waiting=max_waiting,
        timeout=timeout,
        rate=rate,
        drain_seconds=drain_seconds,
        log=log,
        private=private,
        keep_pictures=keep_pictures,
        review_share=review_share,
        alarms=alarms,
        rollout=rollout,
        canary_share=canary_share,
        prices=prices,
    )
    hj.serve_run(run, options)

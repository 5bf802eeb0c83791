"""Converts a LLaVA-1.5 checkpoint of another tool into a base model that every command here takes.

What SRC is, is seen from its tensors: Hugging Face LLaVA in all key layouts, the original LLaVA-1.5 layout, or a
Vicuna/LLaMA language model with its parts named by flags. CLIP's text tower and projections, which no LLaVA checkpoint
has, come from --clip. Nothing is fetched from a network; pickled weights are refused, with the command that converts
them.

Examples:
  python tools/convert.py llava-1.5-7b-hf bases/llava-7b --dtype bfloat16 --clip clip-vit-large-patch14-336
  python tools/convert.py llava-1.5-7b-hf bases/llava-7b --clip clip-vit-large-patch14-336 --dry-run
  python tools/convert.py vicuna-7b bases/mine --clip clip-vit-large-patch14-336 --projector mm_projector.safetensors
  python tools/convert.py small-llava bases/small --clip small-clip --check     (needs torch: the extra `oracle`)
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # conversion is reading and writing; no accelerator is touched

from hidecmoe_jax.core.errors import HidecmoeError  # noqa: E402
from hidecmoe_jax.port.checkpoints.check import Row, check, table  # noqa: E402
from hidecmoe_jax.port.checkpoints.convert import convert  # noqa: E402

REFERENCE = Path(__file__).resolve().parent / "oracle" / "reference.py"


def parser() -> argparse.ArgumentParser:
    """The command's words."""
    words = argparse.ArgumentParser(
        prog="convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("source", type=Path, metavar="SRC", help="folder of the checkpoint")
    words.add_argument("target", type=Path, metavar="DST", help="folder to make; must not exist")
    words.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 stays, all else is float32")
    words.add_argument(
        "--clip", type=Path, nargs="+", metavar="DIR", help="CLIPModel, or its towers in several folders"
    )
    words.add_argument(
        "--vision", type=Path, metavar="DIR", help="vision tower, where SRC has none and --clip is another"
    )
    words.add_argument("--projector", type=Path, metavar="FILE", help="stage-1 projector, for a plain language model")
    words.add_argument("--tokenizer", type=Path, metavar="DIR", help="another tokenizer than SRC's")
    words.add_argument(
        "--layout", choices=("auto", "file", "sharded"), default="auto", help="auto: sharded above 2 GiB"
    )
    words.add_argument("--dry-run", action="store_true", help="say what would be done, from headers alone")
    words.add_argument("--resume", action="store_true", help="go on with a conversion that was stopped")
    words.add_argument(
        "--check",
        action="store_true",
        help="name the folder only where it answers as transformers' own model",
    )
    words.add_argument("--python", default=sys.executable, help="interpreter with torch, for --check")
    words.add_argument("--allow-nonfinite", action="store_true", help="write NaN and infinity too")
    return words


def run(given: argparse.Namespace) -> int:
    """Converts, compares where asked, reports."""
    clips = given.clip or []

    def compared(folder: Path) -> list[Row]:
        rows = check(
            given.source,
            folder,
            reference=REFERENCE,
            clip=clips or None,
            projector=given.projector,
            vision=given.vision,
            python=given.python,
        )
        print(table(rows))
        return rows

    report = convert(
        given.source,
        given.target,
        dtype=given.dtype,
        clip=clips,
        vision=given.vision,
        projector=given.projector,
        tokenizer=given.tokenizer,
        layout=given.layout,
        dry_run=given.dry_run,
        resume=given.resume,
        allow_nonfinite=given.allow_nonfinite,
        check=compared if given.check else None,
    )
    print("\n".join((["would be written:"] if given.dry_run else []) + report.lines()))
    return 0


def main() -> int:
    """Exit codes as those of `hidecmoe`."""
    try:
        return run(parser().parse_args())
    except HidecmoeError as error:
        print(f"convert: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

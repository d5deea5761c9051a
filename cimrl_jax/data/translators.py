"""Who translates: programs and models that run here, a route's legs one after the other.

apertium:eng-spa   Apertium's rules, there by eng-spa and back by spa-eng (Debian: apertium and the pair's package, apertium-eng-spa),
hf:DIR,DIR         folders of Hugging Face sequence-to-sequence models (Marian, ...) that a text goes through one after the other: there, and back.
                   One folder alone is a model that paraphrases.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from cimrl_jax.errors import UserError

ROUTES = "expected apertium:<from>-<to> (apertium:eng-spa) or hf:<folder there>,<folder back>"
TOGETHER = 32
"""Texts of a batch of a model."""
LONGEST = 256
"""Most tokens that a model reads and writes of a text."""

Translate = Callable[[list[str]], list[str]]
"""Texts, none of them empty or of several lines -> as many."""


def route(spec: str, timeout: float) -> tuple[str, Callable[[], list[Translate]]]:
    """(the route under a name that changes with its models, what makes its legs). A program may take `timeout` seconds for the texts of one call.

    Raises:
      UserError: a spec of no known form, or a folder without a model. From what makes the legs, and from these: a program, package or direction
        that is missing, a model that cannot be read, a translator that fails or takes too long.
    """
    kind, _, rest = spec.partition(":")
    there, _, back = rest.partition("-")
    if kind == "apertium" and there and back:
        return spec, lambda: _apertium((rest, f"{back}-{there}"), timeout)
    if kind == "hf" and (folders := [pathlib.Path(name).expanduser() for name in rest.split(",") if name]):
        return f"hf:{_digest(folders)}", lambda: [_model(folder) for folder in folders]
    raise UserError(f"back-translation: {spec!r} names no route; {ROUTES}")


def _apertium(directions: Sequence[str], timeout: float) -> list[Translate]:
    program = shutil.which("apertium")
    if program is None:
        raise UserError(f"back-translation: the program apertium is not installed; run: apt install apertium apertium-{directions[0]}")
    known = _run([program, "-l"], "", timeout).split()
    for direction in directions:
        if direction not in known:
            raise UserError(
                f"back-translation: apertium has no direction {direction!r}, only {', '.join(known) or 'none'}; "
                f"run: apt install apertium-{directions[0]} (a pair's package has both directions)"
            )

    def leg(direction: str, texts: list[str]) -> list[str]:
        # A blank line ends a sentence: without it words change places with those of the next text.
        found = _run([program, "-u", direction], "\n\n".join(texts), timeout).rstrip("\n").split("\n\n")
        if len(texts) == 1:
            return [" ".join(found)]
        return found if len(found) == len(texts) else [back for text in texts for back in leg(direction, [text])]

    return [functools.partial(leg, direction) for direction in directions]


def _run(command: list[str], given: str, timeout: float) -> str:
    """What a program, with all that it starts, writes."""
    what = f"back-translation: {' '.join([pathlib.Path(command[0]).name, *command[1:]])}"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    spoken = os.environ | {"LC_ALL": "C.UTF-8"}
    with subprocess.Popen(command, **pipes, encoding="utf-8", errors="replace", env=spoken, start_new_session=True) as process:
        try:
            written, complaint = process.communicate(given, timeout=timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise UserError(f"{what} took more than {timeout:g} s and was stopped; try it in a shell, and start again to go on") from error
            raise
    if process.returncode:
        said = " ".join(complaint.split())[:200] or f"exit code {process.returncode}"
        raise UserError(f"{what} failed ({said}); try it in a shell, and install the pair again if it fails there too")
    return written


def _model(folder: pathlib.Path) -> Translate:
    where = f"back-translation: {folder}"
    try:
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    except ImportError as error:
        raise UserError(f"{where}: its model needs torch and transformers ({error}); run: pip install torch 'cimrl_jax[text]'") from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{where} has no *.safetensors, and weights in other files are not read; save the model again with save_pretrained")
    try:
        tokeniser: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    except Exception as error:  # the reader has no error of its own
        raise UserError(
            f"{where}: not a sequence-to-sequence model that can be read ({' '.join(str(error).split())[:200]}); fetch the whole folder again"
        ) from error

    limit = min(getattr(model.config, "max_position_embeddings", LONGEST), LONGEST) - 1  # the first token is none of the text's

    def leg(texts: list[str]) -> list[str]:
        found = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), TOGETHER):
            places = order[start : start + TOGETHER]
            ids = tokeniser([texts[place] for place in places], return_tensors="pt", padding=True, truncation=True, max_length=limit).to(model.device)
            with torch.inference_mode():
                # The same for every batch: a text's translation must not depend on what is translated beside it.
                made = model.generate(
                    input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], do_sample=False, max_new_tokens=limit, max_length=None
                )
            for place, back in zip(places, tokeniser.batch_decode(made, skip_special_tokens=True), strict=True):
                found[place] = back
        return found

    return leg


def _digest(folders: Sequence[pathlib.Path]) -> str:
    """Of what lies in them: another model under the same name gives other translations."""
    whole = hashlib.sha256()
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise UserError(f"back-translation: {folder} has no config.json; expected the folder of a Hugging Face model; {ROUTES}")
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".spm", ".model")):
            with path.open("rb") as file:
                whole.update(f"{path.name} ".encode() + hashlib.file_digest(file, "sha256").digest())
        whole.update(b"/")
    return whole.hexdigest()[:32]

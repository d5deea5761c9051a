"""The encoders of a trained model as Hugging Face folders: `python -m cimrl_jax.main export --workdir DIR --to FOLDER`; see `--help export`."""

from __future__ import annotations

import os
import pathlib

import jax
import numpy as np

from cimrl_jax.assembly import assemble
from cimrl_jax.config import load
from cimrl_jax.errors import UserError, nearest
from cimrl_jax.experiment import check_weights, finished
from cimrl_jax.selection import Look, choose


def run(workdir: str | os.PathLike[str], to: str | os.PathLike[str], *, method: str = "", seed: int | None = None) -> list[pathlib.Path]:
    """Writes `to/<modality>` for every encoder of a published architecture that a trained model has, as its method's own rule selected it.

    Args:
      workdir: of a run that was trained to its end.
      method: of that run; empty: its last.
      seed: of that run; None: its first.

    Returns:
      The folders, which `transformers` and `model.<modality>.pretrained` read.

    Raises:
      UserError: no such run, method or seed; no encoder that moved; a folder that cannot be written.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--workdir: there is no {folder / 'config.yaml'}; expected the folder of an earlier run")
    config = load(folder / "config.yaml")
    method, seed = method or config.methods[-1], config.seeds[0] if seed is None else seed
    if method not in config.methods:
        raise UserError(f"--method: {folder} has no method {method!r}; {nearest(method, config.methods)}")
    if seed not in config.seeds:
        raise UserError(f"--seed: {folder} has no seed {seed}; choose one of {', '.join(map(str, config.seeds))}")
    built = assemble(load(config, {"methods": (method,), "evaluate.ceiling": False, "workdir": str(folder)}))
    check_weights(folder, built)
    look = Look(config, built)
    best, _ = choose([finished(own, look, folder) for own in built.programs], look)
    rule = look.rule(built.programs[0].method)
    member = [best.program.seeds[i] for i in best.members].index(seed)
    params = jax.tree.map(lambda x: np.asarray(x[member]), best.picked(rule).params["model"])
    written = built.model.export(params, pathlib.Path(to)) if built.model.export else []
    if not written:
        mend = "it needs model.<modality>.pretrained or an hf_ encoder, and features=no"
        raise UserError(f"{folder} trained no encoder of a published architecture, so there is nothing to export; {mend}")
    return written

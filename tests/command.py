"""A console command run in this process, which is much faster than in one of its own that imports torch again."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import sae_match.app


@dataclass(frozen=True)
class Completed:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def run_command(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    command: Callable[[], object] = sae_match.app.main,
) -> Completed:
    """Run a command as its console script would, and leave this process as it was.

    Args:
        arguments: of the command line.
        env: environment variables in addition to this process's own.
        cwd: working directory; None = the current one.
        command: the entry point; `sae-match` by default.
    """
    out, err = io.StringIO(), io.StringIO()
    with _isolated(arguments, env or {}, cwd or Path.cwd()), redirect_stdout(out), redirect_stderr(err):
        try:
            returned = command()
            code = returned if isinstance(returned, int) else 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            if isinstance(ended.code, str):
                print(ended.code, file=err)
        except Exception:
            traceback.print_exc()
            code = 1
    return Completed(code, out.getvalue(), err.getvalue())


@contextmanager
def _isolated(arguments: tuple[str, ...], env: Mapping[str, str], cwd: Path) -> Iterator[None]:
    argv, directory, environment = sys.argv, Path.cwd(), dict(os.environ)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = ["sae-match", *arguments]
    os.chdir(cwd)
    os.environ.update(env)
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        sys.argv = argv
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        for logger in logging.Logger.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                logger.disabled = False

"""Files as they are left behind: readable for whom the umask lets read, whoever wrote the bytes."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np, torch
from sae_match import Permutation
from sae_match.atomic import write_text
from sae_match.record.cache import ResultCache
root = Path(sys.argv[1])
ResultCache(root).put("ab" * 32, {"x": np.arange(3)})
Permutation.identity(3, 3).save(root / "permutation.safetensors")
write_text(root / "text.txt", "text")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_the_umasks(tmp_path: Path, umask: int, mode: int) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, umask=umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {mode}, modes

"""A splice and a control from a user's own module, through a whole job; no value is shared by mistake."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from sae_match import UserError
from sae_match.experiment import Result, losses, run
from sae_match.saes import save_native
from sae_match.study import Study
from tests.builders import identity_sae, random_sae
from tests.experiment.conftest import LAYERS
from tests.tiny_setting import D_MODEL

Configured = Callable[..., Study]
MODULE = '''
import torch
from sae_match.evaluation.controls import Matcher
from sae_match.evaluation.splices import Splice
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.similarity import Similarity
from sae_match.options import option


def mixed(near, far, share):
    return share * near + (1 - share) * far


@option
class Mixed(Splice):
    """Part B's reconstruction, part layer t's residual stream."""

    name: str = "mixed"
    share: float = 0.5

    def bind(self, pair):
        b = pair.b
        return {self.name: self.bound(pair, lambda x: mixed(b.decode(x.f_b), x.x_a, self.share))}


@option
class Signed(Similarity):
    """Decoder cosine of the kept features, or its negative."""

    name: str = "signed"
    sign: float = 1.0

    def matrix(self, pair):
        rows = [
            torch.nn.functional.normalize(sae.W_dec[kept], dim=1)
            for sae, kept in zip((pair.a, pair.b), pair.kept())
        ]
        return self.sign * rows[0] @ rows[1].T


def signed(**arguments):
    return Matcher(name="signed", similarity=Signed(**arguments), solver=CertifiedSolver())
'''


class Own:
    """A user's module that can be rewritten, and jobs with what it defines."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.monkeypatch = folder / "my_package.py", monkeypatch
        self.module = self.write(MODULE)

    def write(self, text: str) -> ModuleType:
        self.path.write_text(text)
        importlib.invalidate_caches()
        known = sys.modules.get("my_package")
        self.module = importlib.reload(known) if known else importlib.import_module("my_package")
        return self.module

    def run(self, cfg: Study, *, splices: tuple[Any, ...] = (), controls: tuple[Any, ...] = ()) -> Result:
        more = {"splices": splices, "controls": controls}
        added = {
            group: getattr(cfg.evaluation, group) | {entry.name: entry for entry in entries}
            for group, entries in more.items()
        }
        plain = cfg.config | {"evaluation": cfg.config["evaluation"] | {k: repr(v) for k, v in added.items()}}
        return run(replace(cfg, evaluation=replace(cfg.evaluation, **added), config=plain))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Own(tmp_path, monkeypatch)
    sys.modules.pop("my_package", None)


def values(result: Result, variant: str, metric: str) -> list[float]:
    table = result.pairs
    found = table[(table.variant == variant) & (table.metric == metric)]
    return pd.Series(found["value"]).tolist()


def measured(result: Result) -> list[float]:
    return [*values(result, "mixed", "explained_variance"), *values(result, "mixed", "delta_loss")]


def test_an_own_splice_is_measured_like_the_others(own: Own, configured: Configured, random_saes: Path) -> None:
    two = (own.module.Mixed(share=0), own.module.Mixed(share=1, name="whole"))
    result = own.run(configured(random_saes), splices=two)
    for metric in ("explained_variance", "r2", "delta_loss", "delta_loss_difference"):
        assert values(result, "mixed", metric) == pytest.approx(values(result, "layer_drop", metric), abs=1e-5)
        assert len(values(result, "whole", metric)) == LAYERS - 1
        assert values(result, "whole", metric) == pytest.approx(
            values(result, "encode_decode_current", metric), abs=1e-5
        )


def test_no_stale_value_is_taken_for_its_own(
    own: Own, configured: Configured, random_saes: Path, tmp_path: Path
) -> None:
    """Argument, code and SAE change one by one; each job finds the cache of those before it."""
    for layer in range(LAYERS):
        save_native(
            random_sae(width=24, d=D_MODEL, seed=50 + layer), tmp_path / "new" / f"layer_{layer:02d}.safetensors"
        )
    rewritten = MODULE.replace("share * near + (1 - share) * far", "0.9 * share * near + (1 - share) * far")
    found: list[list[float]] = []
    for name, share, text, saes in (
        ("first", 0.5, MODULE, random_saes),
        ("argument", 0.25, MODULE, random_saes),
        ("code", 0.25, rewritten, random_saes),
        ("sae", 0.25, rewritten, tmp_path / "new"),
    ):
        splice = own.write(text).Mixed(share=share)
        one = ["layers.last=1", "evaluation/controls=[]"]
        shared = measured(own.run(configured(saes, *one, output=name), splices=(splice,)))
        alone = configured(saes, *one, f"paths.cache_dir={tmp_path / 'caches' / name}", output=f"{name}_alone")
        assert shared == measured(own.run(alone, splices=(splice,)))
        found.append(shared)
    for i, one_job in enumerate(found):
        assert all(a != b for other in found[:i] for a, b in zip(one_job, other, strict=True))


def test_an_argument_without_a_content_key_is_refused_before_long_work(
    own: Own, configured: Configured, random_saes: Path
) -> None:
    typed = own.write(MODULE.replace("    share: float = 0.5", "    share: object = 0.5"))
    with pytest.raises(UserError, match=r"Mixed\.share: a function has no content key"):
        own.run(configured(random_saes), splices=(typed.Mixed(share=measured),))


def test_what_is_known_is_not_computed_again(
    own: Own, configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    inner = losses.splice_losses

    def counting(*arguments: Any) -> Any:
        computed.extend(splice.label for splice in arguments[5].values())
        return inner(*arguments)

    monkeypatch.setattr(losses, "splice_losses", counting)
    one = configured(random_saes, "layers.last=1", "evaluation/controls=[]")
    own.run(one, splices=(own.module.Mixed(),))
    assert len(computed) == 5
    own.run(
        configured(random_saes, "layers.last=1", "evaluation/controls=[]", output="again"),
        splices=(own.module.Mixed(name="renamed"),),
    )
    assert len(computed) == 5


def test_equal_splices_share_their_losses(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal SAEs are matched by the identity, so that `vanilla` is the matching itself."""
    for layer in (0, 1):
        save_native(identity_sae(D_MODEL), tmp_path / "equal" / f"layer_{layer:02d}.safetensors")
    sizes: list[int] = []
    inner = losses.splice_losses

    def counting(*arguments: Any) -> Any:
        sizes.append(len(arguments[5]))
        return inner(*arguments)

    monkeypatch.setattr(losses, "splice_losses", counting)
    more = ["layers.last=1", "evaluation/controls=[vanilla]", "sae.ceiling_filename=null"]
    result = run(configured(tmp_path / "equal", *more))
    assert sizes == [4]
    for metric in ("delta_loss", "explained_variance"):
        ours, vanilla = (values(result, f"encode_permute_decode{name}", metric) for name in ("", "_vanilla"))
        assert ours == vanilla and len(ours) == 1
    assert values(result, "encode_permute_decode_vanilla", "delta_loss_difference") == [0.0]


def test_an_own_control_is_measured_and_cached_by_what_it_is(
    own: Own, configured: Configured, random_saes: Path, tmp_path: Path
) -> None:
    full = own.run(configured(random_saes, "layers.last=1", output="full"), controls=(own.module.signed(),))
    assert values(full, "signed", "fit_similarity")[0] > 0
    assert len(values(full, "signed", "matching_score")) == len(values(full, "signed", "weight_mse/W_dec")) == 1
    assert len(values(full, "encode_permute_decode_signed", "delta_loss")) == 1
    bare = ["evaluation=weights_only", "layers.last=1", "evaluation/controls=[]"]
    same = own.run(configured(random_saes, *bare, output="same"), controls=(own.module.signed(),))
    assert values(same, "signed", "decoder_cosine") == values(full, "signed", "decoder_cosine")
    other = own.run(configured(random_saes, *bare, output="other"), controls=(own.module.signed(sign=-1),))
    assert values(other, "signed", "decoder_cosine")[0] < 0 < values(same, "signed", "decoder_cosine")[0]
    rewritten = own.write(MODULE.replace("return self.sign * rows", "return -self.sign * rows"))
    code = own.run(configured(random_saes, *bare, output="code"), controls=(rewritten.signed(),))
    assert values(code, "signed", "decoder_cosine") == values(other, "signed", "decoder_cosine")

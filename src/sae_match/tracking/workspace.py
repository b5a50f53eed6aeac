"""The saved view of a W&B project that WANDB.md describes: which runs, which columns, which panels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sae_match.errors import UserError
from sae_match.record.configuration import COLUMN_PATHS

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

NAME = "SAE Match"
SETTINGS = ("metric", "folding", "solver", "sae", "model", "dataset", "layers_first", "layers_last")
"""Columns pinned where nobody says which settings vary."""
SORTED_BY = "matching_score"
SPLICE = "encode_permute_decode"
NUMBERS = (
    SORTED_BY, "matching_score/random", "matching_score/ceiling", f"explained_variance/{SPLICE}",
    f"delta_loss/{SPLICE}", "weight_mse/W_dec", "gap",
)  # fmt: skip
"""Summary columns, pinned after the settings."""
PER_LAYER = {
    "matching score": ("matching_score/matched", "matching_score/random", "matching_score/ceiling"),
    "explained variance": tuple(f"explained_variance/{n}" for n in (SPLICE, "encode_decode_previous", "layer_drop")),
    "delta loss": tuple(f"delta_loss/{name}" for name in (SPLICE, "encode_decode_current", "layer_drop")),
    "weight MSE of W_dec": ("weight_mse/W_dec/matched",),
    "decoder cosine": ("decoder_cosine/matched",),
    "L0": ("l0/sae",),
    "mean theta": ("mean_theta/sae",),
    "residual norm": ("residual_norm/model",),
    "gap": ("gap/matched",),
    "solver seconds": ("solver_seconds/matched",),
}
BY_DISTANCE = {
    "agreement": ("agreement/composed/mean", "agreement/random/mean"),
    "matching score": tuple(f"matching_score/{name}/mean" for name in ("composed", "exact", "random")),
}
REACH = ("composition/beats_random_until", "composition/half_of_exact_until")
PICTURES = ("figures/overview", "figures/theta", "figures/decoder_mse")
TABLES = ("comparison", "example_pairs", "labels")
OPEN = ("Comparison", "Per layer")
"""Sections whose panels every sweep fills."""
_PLACE = re.compile(r"[\w.-]+/[\w.-]+")


def save_view(place: str, varied: Sequence[str] = ()) -> None:
    """Save the view in a project; W&B's client prints its address.

    Args:
        place: ENTITY/PROJECT.
        varied: settings that the runs differ in, as in `record.configuration.COLUMN_PATHS`; they are pinned.

    Raises:
        UserError: no such place, the package wandb-workspaces is missing, or W&B refuses.
    """
    view = make_view(place, varied)
    import wandb

    try:
        view.save()
    # The package raises what its transport raises: of wandb, of requests, or plain ones.
    except (wandb.errors.Error, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--wandb-workspace {place}: W&B did not save the view: {' '.join(str(error).split())}. It needs "
            "`wandb login` or WANDB_API_KEY, and a project that exists (log or sync a run first)."
        ) from error


def make_view(place: str, varied: Sequence[str] = ()) -> ws.Workspace:
    """The view, not yet saved. Arguments and errors as of `save_view`."""
    if not _PLACE.fullmatch(place):
        raise UserError(f"--wandb-workspace {place}: expected ENTITY/PROJECT")
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("wandb_workspaces"):
            raise
        raise UserError(
            "--wandb-workspace needs the package wandb-workspaces: pip install 'sae-match[workspace]'"
        ) from None
    entity, project = place.split("/")
    settings = [name for name in COLUMN_PATHS if name in varied] or list(SETTINGS)
    pinned = ["run:displayName", "run:group", "run:state"]
    pinned += [f"config:{name}.value" for name in settings] + [f"summary:{name}" for name in NUMBERS]
    color = "folding" if "folding" in settings else settings[0]

    def lines(title: str, x: str, names: Sequence[str]) -> Any:
        return wr.LinePlot(title=title, x=x, y=list(names))

    def bars(name: str, by: str) -> Any:
        return wr.BarPlot(title=f"{name} by {by}", metrics=[name], groupby=by, orientation="v")

    coordinates = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name) for name in settings]
    coordinates.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(SORTED_BY), display_name=SORTED_BY))
    panels = {
        "Comparison": [
            *(bars(name, color) for name in (SORTED_BY, f"delta_loss/{SPLICE}")),
            wr.ScatterPlot(
                title="score and explained variance", x=wr.SummaryMetric(SORTED_BY),
                y=wr.SummaryMetric(f"explained_variance/{SPLICE}"),
            ),
            wr.ParallelCoordinatesPlot(columns=coordinates),
            *(wr.WeavePanelSummaryTable(table_name=name) for name in TABLES),
        ],
        "Per layer": [lines(title, "layer", [f"per_layer/{n}" for n in names]) for title, names in PER_LAYER.items()],
        "Composition": [
            *(lines(title, "distance", [f"by_distance/{n}" for n in names]) for title, names in BY_DISTANCE.items()),
            wr.BarPlot(title="how far composition reaches", metrics=list(REACH)),
        ],
        "Quantiles": [
            lines(name.replace("_", " "), "quantile", [f"by_quantile/{name}/mean"])
            for name in ("delta_loss", "explained_variance")
        ],
        "Sparsity": [
            wr.ScatterPlot(title=f"L0 and {name}", x=wr.SummaryMetric("l0/sae"), y=wr.SummaryMetric(name))
            for name in (SORTED_BY, f"delta_loss/{SPLICE}")
        ],
        "Pictures": [wr.MediaBrowser(media_keys=list(PICTURES))],
    }  # fmt: skip
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=found, is_open=name in OPEN) for name, found in panels.items()],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("JobType") == "match"],
            order=[ws.Ordering(ws.Summary(SORTED_BY), ascending=False)],
            pinned_columns=pinned,
        ),
    )

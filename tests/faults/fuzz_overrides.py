"""Hostile overrides, sweeps and configuration files, drawn with Hydra's override grammar and OmegaConf's in mind.

Everything is composed in this process as the command composes it; each input costs some 0.1 s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sae_match import UserError
from sae_match.config.bounded_resolution import resolved_where_possible
from sae_match.config.compose import config_directory, register_schemas, to_dataclass
from sae_match.config.composition_guard import guarded_composition
from sae_match.config.hydra_group import named
from sae_match.config.rules import check_config
from sae_match.config.schema import Config
from sae_match.config.secrets import refuse_secrets
from sae_match.sweep.launch import planned_overrides

ACCEPTED, REFUSED = "accepted", "refused"
SECRET = "abcdef0123456789abcd"
TARGETS = ("hydra._internal.core_plugins.", "hydra_plugins.", "sae_match.sweep.launch.SweepCallback")
Check = Callable[[Any, Path], str]
Strategy = st.SearchStrategy[Any]


def _keys(value: object, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [prefix, *(k for name, v in value.items() for k in _keys(v, f"{prefix}.{name}" if prefix else str(name)))]


def configuration_keys() -> list[str]:
    """Every key of the composed default configuration, Hydra's own included."""
    register_schemas()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        cfg = compose("config", overrides=[], return_hydra_config=True)
    plain = OmegaConf.to_container(cfg, resolve=False)
    ours = _keys({key: value for key, value in plain.items() if key != "hydra"}) if isinstance(plain, dict) else []
    hydra = [key for key in _keys(plain) if key.startswith("hydra.")] if isinstance(plain, dict) else []
    return [key for key in [*ours, *ours, *hydra] if key]


# -- values -----------------------------------------------------------------------------------------------

words = st.sampled_from(
    ["0", "-1", "1e400", "nan", "inf", "null", "???", "true", "9" * 400, "1.5", "''", '"x"', "[1,2]", "[[[]]]", "{a:1}",
     "{_target_:os.system}", "{_target_:pathlib.Path.touch,_args_:[canary]}", "${seed}", "${nothing}", "${oc.env:HOME}",
     "${oc.env:NO_SUCH_VARIABLE}", "${eval:1+1}", "${oc.decode:'{a: 1}'}", "${paths}", "${hydra:runtime.cwd}", "${",
     "$", "}{", "(", "[" * 200, "glob(*)", "range(1,5)", "a,b", "choice(a,b)", "\\", "'", "../../etc/passwd", "\x00",
     "é" * 50, "certified", "weights_only", "full", "none", "both", "theta", "int(3)", "str([1])", "{layer:9999999d}",
     "sk-" + "a" * 30, "!!python/object/apply:os.system [x]", "&a [*a]", "16k", "hub", "local", "a/../b", "",
     "embedded/smollm2_135m", "ext://os.environ", "cfg://root", "\u202e\ud800", "x" * 30_000, "${oc.env:FUZZ_API_KEY}",
     "FUZZ_API_KEY", "1:59:59", "0x1F", "1_0"]
)  # fmt: skip
names = st.one_of(st.sampled_from(["a", "b", "seed", "sae.name", "..seed", "hydra.job.num", "HOME", "_target_"]), words)
leaves = st.one_of(
    words, words, st.text(max_size=8), st.integers(-(10**20), 10**20).map(str), st.floats().map(str),
    st.sampled_from(["'", '"']).flatmap(lambda quote: st.text(max_size=6).map(lambda text: f"{quote}{text}{quote}")),
)  # fmt: skip
FUNCTIONS = ("int", "float", "str", "bool", "json_str", "choice", "range", "interval", "glob", "shuffle", "sort", "tag",
             "extend_list", "nowhere", "sort(range", "shuffle(range")  # fmt: skip
RESOLVERS = ("oc.env", "oc.create", "oc.decode", "oc.select", "oc.dict.keys", "oc.dict.values", "oc.deprecated",
             "hydra", "now", "python_version", "nowhere", "oc.${sae.name}", "oc", "")  # fmt: skip


def _grown(inner: Strategy) -> Strategy:
    """Grammar around inner values: lists, mappings, quotes, functions, sweeps and interpolations of any nesting."""
    several = st.lists(inner, max_size=3)
    return st.one_of(
        several.map(lambda v: f"[{','.join(v)}]"),
        several.map(",".join),
        st.lists(st.tuples(names, inner), max_size=3).map(lambda d: "{" + ",".join(f"{k}:{v}" for k, v in d) + "}"),
        st.tuples(st.sampled_from(FUNCTIONS), several).map(lambda d: f"{d[0]}({','.join(d[1])})" + ")" * ("(" in d[0])),
        st.tuples(st.sampled_from(RESOLVERS), several).map(lambda d: f"${{{d[0]}:{','.join(d[1])}}}"),
        st.one_of(names, inner).map(lambda name: f"${{{name}}}"),
        inner.map(lambda value: "'" + value.replace("'", "\\'") + "'"),
        inner.map(lambda value: '"' + value.replace('"', '\\"') + '"'),
        st.tuples(inner, st.integers(2, 60)).map(lambda d: (d[0] * d[1])[:5000]),
        st.tuples(inner, st.integers(2, 120)).map(lambda d: "[" * d[1] + d[0] + "]" * d[1]),
        st.tuples(inner, st.integers(2, 60)).map(lambda d: "${oc.select:" * d[1] + d[0] + "}" * d[1]),
    )


values = st.one_of(leaves, st.recursive(leaves, _grown, max_leaves=6))

# -- keys -------------------------------------------------------------------------------------------------

marks = st.sampled_from(["", "", "", "", "+", "++", "~"])
GROUPS = ("matching", "folding", "solver", "sae", "model", "dataset", "evaluation", "judging", "tracking", "experiment",
          "scheme", "launcher", "verbosity", "hydra/launcher", "hydra/job_logging", "hydra/sweeper")  # fmt: skip
UNKNOWN = ("hydra.callbacks.x._target_", "hydra.callbacks.x", "hydra.callbacks", "hydra.job_logging", "hydra.launcher",
           "hydra.job_logging.handlers.console.class", "hydra.job.env_set.PATH", "hydra.job.env_copy", "sae._target_",
           "hydra.sweeper.params", "hydra.searchpath", "hydra", "x", "", "a.b.c", "=", "a..b", ".a", "a.", "sae[0]",
           "sae.name[0].x", "é", "/sae", "sae/x", "\ud800", "a" * 5000, ".".join("a" * 300), "0", "null")  # fmt: skip
packages = st.sampled_from(["", "", "", "@", "@_global_", "@x.y", "@_group_", "@a:b", "@:sae", "@sae:model", "@hydra"])


def override_keys() -> Strategy:
    """Keys that exist and that do not, groups with their options, and packages."""
    known = st.sampled_from([*configuration_keys(), *UNKNOWN, *GROUPS, *GROUPS, *GROUPS])
    return st.tuples(known, packages).map("".join)


def _options() -> list[tuple[str, str]]:
    return [
        (str(path.parent.relative_to(config_directory())), path.stem) for path in config_directory().glob("**/*.yaml")
    ]


def overrides() -> Strategy:
    """One to four overrides."""
    anything = st.tuples(marks, override_keys(), values).map(
        lambda d: f"~{d[1]}" if d[0] == "~" and len(d[2]) % 2 else f"{d[0]}{d[1]}={d[2]}"
    )
    option = st.sampled_from(_options()).map("=".join)
    return st.lists(st.one_of(anything, anything, anything, option), min_size=1, max_size=4)


# -- what is done with them -------------------------------------------------------------------------------


def _outcome(work: Callable[[], object]) -> str:
    os.environ["FUZZ_API_KEY"] = SECRET
    try:
        with guarded_composition(), initialize_config_dir(str(config_directory()), version_base="1.3"):
            work()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if not str(error).strip() and error.__cause__ is None:
            raise AssertionError("a refusal without a word") from error
        return REFUSED
    finally:
        del os.environ["FUZZ_API_KEY"]
    return ACCEPTED


def _harmless(cfg: DictConfig) -> None:
    """What Hydra would act on and write, resolved: no foreign target, no secret."""
    resolved = resolved_where_possible(cfg)
    foreign = [value for _, value in named(resolved, "_target_") if not str(value).startswith(TARGETS)]
    if foreign or SECRET in f"{resolved}{OmegaConf.to_yaml(cfg)}":
        raise AssertionError(f"passed: {foreign or 'a secret'}")


def _check(cfg: DictConfig) -> None:
    """What a job does with its configuration before it works."""
    HydraConfig.instance().set_config(cfg)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    checked = to_dataclass(cfg, Config)
    refuse_secrets(checked.config)
    check_config(checked)


def _composed(given: list[str]) -> str:
    def work() -> None:
        cfg = _hydra().compose_config("config", ["paths.output_dir=out", *given], run_mode=RunMode.RUN)
        _harmless(cfg)
        _check(cfg)

    return _outcome(work)


def _hydra() -> Hydra:
    hydra = GlobalHydra.instance().hydra
    if hydra is None:
        raise AssertionError("Hydra is not initialised")
    return hydra


def _launched(given: list[str]) -> None:
    """A sweep up to the composition of its first jobs, without Hydra's sweeper, which would run them."""
    hydra = _hydra()
    master = hydra.compose_config("config", ["paths.output_dir=out", *given], run_mode=RunMode.MULTIRUN)
    for job in planned_overrides(master)[:2]:
        cfg = hydra.config_loader.load_sweep_config(master, job)
        _harmless(cfg)
        _check(cfg)


def override_target() -> tuple[Strategy, Check]:
    """Overrides of a single job."""
    return overrides(), lambda drawn, _: _composed(drawn)


def sweep_target() -> tuple[Strategy, Check]:
    """Overrides of a sweep."""
    ranges = st.tuples(st.sampled_from(["seed", "layers.pair", "sae"]), st.one_of(
        st.lists(values, min_size=2, max_size=3).map(",".join),
        st.lists(st.sampled_from(["0", "1", "-1", "3", "1e9", "10000000000", "nan", "inf", "0.1", "a"]), max_size=4)
        .map(lambda d: f"range({','.join(d)})"))).map("=".join)  # fmt: skip
    drawn = st.tuples(overrides(), st.lists(ranges, min_size=1, max_size=2), st.integers(0, 2)).map(
        lambda d: [*d[1], *d[0][: d[2]]]
    )
    return drawn, lambda given, _: _outcome(lambda: _launched(given))


# -- configuration files ----------------------------------------------------------------------------------


def _bomb(levels: int, width: int, merge: bool) -> str:
    """Aliases of aliases; `merge`: through merge keys, which YAML's reader itself writes out."""
    lines = ["x0: &a0 {k: v}" if merge else "x0: &a0 [x, x]"]
    for level in range(1, levels):
        inner = f"[{', '.join([f'*a{level - 1}'] * width)}]"
        lines.append(f"x{level}: &a{level} " + (f"{{<<: {inner}}}" if merge else inner))
    return "\n".join(lines)


def _chain(levels: int, width: int, sign: str) -> str:
    """Interpolations of interpolations."""
    keys = ["name", "root", "repo_id", "revision", "width", "folder"]
    names = [f"sae.{key}" for key in keys]
    return "\n".join(f"{keys[n]}: '{(sign % names[n + 1]) * width}'" for n in range(min(levels, 5))) + f"\n{keys[5]}: x"


def yaml_target(json_values: Strategy) -> tuple[Strategy, Check]:
    """A configuration group of the user's own, found through a search path as --config-dir adds one."""
    known = configuration_keys()

    def files(group: str) -> Strategy:
        own = sorted({key.split(".")[1] for key in known if key.startswith(f"{group}.")})
        return st.tuples(st.just(group), HEADERS, _texts(own, json_values))

    return st.sampled_from(GROUPS[:9]).flatmap(files), _yaml


def _texts(own: list[str], json_values: Strategy) -> Strategy:
    strange = st.sampled_from(["name", "_target_", "defaults", "seed", "hydra", "<<", "&a"])
    keys = st.one_of(st.sampled_from(own), st.sampled_from(own), st.sampled_from(own), strange)
    values_or_leaves = st.one_of(json_values, leaves, values)
    return st.one_of(
        st.sampled_from(YAML_TEXTS),
        st.dictionaries(st.sampled_from(own), values_or_leaves, max_size=2).map(_block),
        st.dictionaries(keys, st.one_of(json_values, values), max_size=4).map(_block),
        st.lists(st.tuples(keys, values), max_size=4).map(lambda d: "\n".join(f"{k}: {v}" for k, v in d)),
        st.lists(st.tuples(override_keys(), values), max_size=3).map(lambda d: _block(_nested(d))),
        st.builds(_bomb, st.integers(2, 60), st.integers(1, 12), st.booleans()),
        st.builds(_chain, st.integers(1, 5), st.integers(1, 300), st.sampled_from(["${%s}", "${oc.select:%s}"])),
        st.lists(st.sampled_from(["- ", "? ", ": ", "[", "{", "&a ", "*a", "\n", "  ", "!!set ", "x", "<<: ", "|", ">",
                                  "# @package _global_\n", "defaults:", "_self_", "override ", "/sae", "@", "fuzzed",
                                  "...", "---", "%YAML 1.1", "!", "'", '"', ",", "]", "}"]), max_size=30).map("".join),
        st.just(""), st.text(max_size=30),
    )  # fmt: skip


def _block(content: dict[str, Any]) -> str:
    """Block style above, JSON below, so that it can follow a defaults list."""
    return "\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())


def _nested(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, value in pairs:
        place = root
        *parents, last = key.split(".")[:30]
        for parent in parents:
            below = place.setdefault(parent, {})
            place = below if isinstance(below, dict) else place.__setitem__(parent, {}) or place[parent]
        place[last] = value
    return root


SHIPPED = "shipped"
"""Stands for a defaults list that names one of the group's own files, so that little is missing."""
HEADERS = st.sampled_from(["", SHIPPED, SHIPPED, "# @package _global_\n", "# @package hydra\n", "# @package a.b\n"])
YAML_TEXTS = [
    "!!python/object/apply:pathlib.Path.touch [canary]", "a: !!python/name:os.system", "_target_: os.system",
    "defaults: [nowhere]", "# @package _global_\nhydra: {callbacks: {x: {_target_: pathlib.Path, _args_: [c]}}}",
    "# @package hydra\njob_logging: {handlers: {console: {'()': pathlib.Path.touch, self: canary}}}", "a: &a [*a]",
    "- 1", "3", "", "\t", "name: ${oc.env:HOME}", "? {a: b}\n: c", "name: \x01", "name: \ud800", "{" * 2000,
    "defaults: [fuzzed]", "defaults:\n  - _self_\n  - /sae@model: native", "root: /x\nname: n\ndialect: native",
    "defaults: [fuzzed@a, fuzzed@b, fuzzed@c]", "defaults:\n  - /sae/fuzzed@x\n  - /sae/fuzzed@y", "a: &a {b: *a}",
    "defaults: [{override /hydra/job_logging: nowhere}]", "defaults: ['${oc.create:x}']", "<<: [1]", "<<: x",
    "defaults: [{/sae: '${oc.env:HOME}'}]", "name: " + "1:59" * 5000, "name: " + "9" * 5000, "? [a]\n: b",
    "hydra: {searchpath: [/]}", "!!omap [a: 1]", "!!set {a, b}", "!!binary '####'", "- " * 3000, "? " * 3000,
    "# @package " + "a." * 2000 + "b\nx: 1", "name: " + "${oc.select:" * 500 + "x" + "}" * 500, "name: '${now:%%%Q}'",
]  # fmt: skip


def _yaml(drawn: tuple[str, str, str], root: Path) -> str:
    group, header, text = drawn
    (root / group).mkdir(exist_ok=True)
    if header == SHIPPED:
        header = f"defaults: [{min(path.stem for path in (config_directory() / group).glob('*.yaml'))}, _self_]\n"
    (root / group / "fuzzed.yaml").write_bytes((header + text).encode(errors="surrogatepass"))
    return _composed([f"{group}=fuzzed", f"hydra.searchpath=[{root}]"])

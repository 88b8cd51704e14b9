"""Runs a recipe: trains and measures what the store does not have, and writes the figure, its data and its claims."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sdkernels.engine.keeping import Workers
from sdkernels.lab.folders import has_imagenet
from sdkernels.lab.sweep import Comparing, Networks, NetworksFailedError, Sweep, compare_networks, run_sweep
from sdkernels.lab.sweep.settings import flat
from sdkernels.lab.sweep.table import DIGITS
from sdkernels.paper.catalogue import RECIPES
from sdkernels.paper.claims import claims_table
from sdkernels.paper.machine import describe_machine
from sdkernels.paper.options import change_options, option_values
from sdkernels.paper.recipe import PRESETS, Done, Recipe
from sdkernels.paper.run_folder import RunFolder, make_folder

FILES = ("figure.png", "figure.pdf", "data.csv", "report.json", "claims.md")

STORE = "networks.sdk"

_OUTCOMES = ("epochs", "train_accuracy", "train_loss", "test_accuracy", "test_loss", "memorised", "data_sha256")


def reproduce(
    figure: str,
    preset: str = "quick",
    *,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    store: Path | None = None,
    workers: Workers | None = None,
    device: str = "auto",
    fresh: bool = False,
    show_progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Reproduce a figure: train its networks, measure them, draw, and test the paper's claims.

    ``OUT/FIGURE-PRESET`` then holds ``figure.png``, ``figure.pdf``, ``data.csv`` (one row an observation),
    ``claims.md`` and ``report.json``. Networks and measurements are kept in the store and shared between figures; a run
    that was stopped, at any moment, goes on from there.

    Args:
        figure: as ``"fig1a"``; :data:`sdkernels.paper.catalogue.RECIPES` has them.
        preset: ``"quick"`` (embedded digits), ``"small"`` (MNIST, CIFAR-10, reduced) or ``"paper"`` (as published).
        data_dir: where data files are.
        out: the folder of run folders.
        store: the ledger, by default ``OUT/networks.sdk``.
        workers: processes that share the work; see :class:`sdkernels.lab.cluster.RayWorkers`.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        fresh: throw away an earlier run in the folder; the store stays as it is.
        changes: options other than the preset's, by name; ``"networks.epochs"``'s dots are for ``**{...}``.

    Returns:
        The report, as in ``report.json``, with ``"folder"``, where it lies.

    Raises:
        ValueError: a figure, preset or option that there is not, data that cannot be read, a folder with another run.
        NetworksFailedError: the training of every network of a part has diverged.

    Example:
        >>> import tempfile
        >>> small = {"examples": 100, "shape": {"hidden": [16, 16]}, "levels": [0.0, 1.0], "epochs": 2, "repeats": 1}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = reproduce("fig1a", out=Path(folder), show_progress=False, orders=2, **small)
        ...     sorted(path.name for path in Path(report["folder"]).iterdir())
        ['claims.md', 'data.csv', 'figure.pdf', 'figure.png', 'report.json', 'sdkernels-run.json']
    """
    if figure not in RECIPES:
        raise ValueError(f"there is no recipe for {figure!r}; there are {', '.join(RECIPES)}")
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    check_device(device)
    recipe: Recipe[Any] = RECIPES[figure]
    options = change_options(recipe.presets[preset], changes)
    settings = {"figure": figure, "preset": preset, "device": device, **option_values(options)}
    sweeps, absent = _sweeps(recipe, options, data_dir)
    folder = RunFolder(out / f"{figure}-{preset}", settings, FILES, fresh=fresh)
    start = time.perf_counter()
    ledger = store or out / STORE
    make_folder(ledger.parent)
    networks = {part: _run(sweep, ledger, data_dir, workers, device, show_progress) for part, sweep in sweeps.items()}
    compared = _compare(recipe, options, networks, device, show_progress)
    done = Done(options, networks, absent, {name: comparing.result for name, comparing in compared.items()}, device)
    report: dict[str, Any] = {
        "figure": figure,
        "title": recipe.title,
        "preset": preset,
        "changes": dict(changes),
        "options": asdict(options),
        "choices": dict(recipe.choices),
        "not_reproduced": absent,
        "machine": {**describe_machine(device), "workers": workers.count if workers else 1},
        "seconds": {
            "training_and_measuring": sum(part.seconds() for part in networks.values()),
            "comparing": sum(comparing.seconds for comparing in compared.values()),
            "this_call": time.perf_counter() - start,
        },
        "networks": [record for part, found in networks.items() for record in _records(part, found)],
        "claims": [],
    }
    if networks or not absent:
        begin = time.perf_counter()
        table = recipe.table(done)
        claims = recipe.claims(done, table)
        drawn = recipe.draw(done, table)
        report["seconds"]["table_and_claims"] = time.perf_counter() - begin
        folder.write("data.csv", lambda path: table.to_csv(path, index=False, float_format=DIGITS))
        folder.write("figure.png", lambda path: drawn.savefig(path, dpi=200, format="png"))
        folder.write("figure.pdf", lambda path: drawn.savefig(path, format="pdf"))
        folder.write("claims.md", lambda path: path.write_text(claims_table(claims) + "\n"))
        report["claims"] = [claim.record() for claim in claims]
    report["seconds"]["this_call"] = time.perf_counter() - start
    folder.write_json("report.json", report)
    return {**report, "folder": str(folder.path)}


def check_device(device: str) -> None:
    """See that a device works.

    Raises:
        ValueError: it does not.
    """
    if device == "auto":
        return
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({why}); try auto or cpu") from error


def _sweeps(recipe: Recipe[Any], options: Any, data_dir: Path | None) -> tuple[dict[str, Sweep], dict[str, str]]:
    """The parts that can be run here, and why the others cannot."""
    found, absent = {}, {}
    for part, sweep in recipe.sweeps(options).items():
        if recipe.needs.get(part) == "ImageNet" and not has_imagenet(data_dir):
            absent[part] = "not reproduced: needs ImageNet"
        else:
            found[part] = replace(sweep, name=f"{recipe.name} {part}")
    return found, absent


def _run(
    sweep: Sweep, store: Path, data_dir: Path | None, workers: Workers | None, device: str, show_progress: bool
) -> Networks:
    """The part's networks; those whose training diverged are left out, and the report says so."""
    try:
        return run_sweep(sweep, store, data_dir=data_dir, workers=workers, device=device, show_progress=show_progress)
    except NetworksFailedError as error:
        if len(error.networks.failed) == len(error.networks):
            raise
        return error.networks


def _compare(
    recipe: Recipe[Any], options: Any, networks: Mapping[str, Networks], device: str, show_progress: bool
) -> dict[str, Comparing]:
    """What comparing networks of each part gave, by the comparisons' names."""
    return {
        comparison.name: compare_networks(networks[part], comparison, device=device, show_progress=show_progress)
        for part, comparisons in recipe.comparisons(options).items()
        if part in networks
        for comparison in comparisons
    }


def _records(part: str, networks: Networks) -> list[dict[str, Any]]:
    """What the report says of each network."""
    found = []
    for index, settings in enumerate(networks.sweep.networks):
        values: Mapping[str, Any] = {name: flat(settings).get(name) for name in networks.sweep.varying}
        record: dict[str, Any] = {"part": part, "network": index, "settings": values, "key": networks.keys[index]}
        if index in networks.failed:
            found.append({**record, "failed": networks.failed[index]})
            continue
        trained = networks.record(index)
        found.append(record | {name: trained[name] for name in _OUTCOMES if name in trained})
    return found

"""``sdkernels reproduce``: a figure of a paper, or all of them."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sdkernels.commands.failures import clear, say
from sdkernels.commands.workers import Count, Cpus, Gpus, Ray, opened_workers


class Preset(str, Enum):
    """How much of a recipe is run."""

    quick = "quick"
    small = "small"
    paper = "paper"


def reproduce(
    figure: Annotated[str, typer.Argument(help="fig1a, ..., figA4; all; or list, which says what there is.")],
    preset: Annotated[
        Preset,
        typer.Option(help="quick: embedded digits, minutes; small: MNIST and CIFAR-10, reduced; paper: as published."),
    ] = Preset.quick,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="SDKERNELS_DATA", help="Where the publishers' data files are.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the run folders, FIGURE-PRESET, are.")] = Path("runs"),
    store: Annotated[
        Path | None,
        typer.Option(help="The ledger of networks and measurements, shared by figures; by default OUT/networks.sdk."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change an option, as orders=5; may be given several times."),
    ] = None,
    options: Annotated[bool, typer.Option("--options", help="Show the figure's options, and run nothing.")] = False,
    ray: Ray = None,
    workers: Count = None,
    cpus: Cpus = None,
    gpus: Gpus = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away an earlier run in the folder; the ledger stays.")
    ] = False,
) -> None:
    """Reproduce a figure of a paper into a run folder; run again after a stop, it continues."""
    from sdkernels.engine.stopping import heed
    from sdkernels.lab.sweep import NetworksFailedError
    from sdkernels.paper import catalogue
    from sdkernels.paper.options import change_options, option_values
    from sdkernels.paper.reproduce import reproduce as run

    recipes = catalogue.RECIPES
    if figure == "list":
        width = max(map(len, recipes))
        typer.echo("\n".join(f"{name:{width}}  {recipe.title}" for name, recipe in recipes.items()))
        return
    failed = []
    with clear(f"sdkernels reproduce {figure}"):
        wanted = parse_changes(changes or [])
        names = list(recipes) if figure == "all" else [figure]
        known = {name: _known(wanted, recipes[name].presets[preset.value]) for name in names if name in recipes}
        for change in wanted:
            if figure == "all" and not any(change in own for own in known.values()):
                raise ValueError(
                    f"no figure has an option {change!r}; `sdkernels reproduce FIGURE --options` lists them"
                )
        if options and figure in recipes:
            shown = option_values(change_options(recipes[figure].presets[preset.value], wanted))
            typer.echo("\n".join(f"{name} = {json.dumps(value)}" for name, value in shown.items()))
            return
        with opened_workers(ray, workers, cpus, gpus) as shared:
            where: dict[str, Any] = {"data_dir": data_dir, "out": out, "store": store, "workers": shared}
            for name in names:
                heed(f"figures before {name} are finished")
                own = known[name] if figure == "all" else wanted
                try:
                    _show(run(name, preset.value, **where, device=device, fresh=fresh, **own))
                except BrokenPipeError:
                    raise
                except (ValueError, OSError, ImportError, NetworksFailedError) as error:
                    say(f"sdkernels reproduce {name}: {error}")
                    failed.append(name)
    if failed:
        if figure == "all":
            typer.echo(f"{len(failed)} of {len(names)} could not be reproduced: {', '.join(failed)}", err=True)
        raise typer.Exit(2)


def parse_changes(given: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as a mapping; values are JSON, and what is no JSON is text.

    Raises:
        ValueError: no ``=``, or a name twice.

    Example:
        >>> parse_changes(["orders=5", "levels=[0, 1]", "scale_kind=var"])
        {'orders': 5, 'levels': [0, 1], 'scale_kind': 'var'}
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {text!r}: write --set NAME=VALUE, as --set orders=5")
        if name in found:
            raise ValueError(f"--set {name}=...: it is given twice")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _known(changes: dict[str, Any], options: Any) -> dict[str, Any]:
    """Of changes for all figures, those that this one has an option for."""
    from sdkernels.paper.options import option_values

    names = option_values(options)
    return {k: v for k, v in changes.items() if any(full == k or full.endswith(f".{k}") for full in names)}


def _show(report: dict[str, Any]) -> None:
    from sdkernels.paper.claims import Claim, claims_text

    typer.echo(f"\n{report['title']}\n")
    for part, why in report["not_reproduced"].items():
        typer.echo(f"{part}: {why}")
    for network in report["networks"]:
        if "failed" in network:
            typer.echo(f"left out, network {network['network']} of {network['part']}: {network['failed']}")
    if report["claims"]:
        typer.echo(claims_text([Claim(**claim) for claim in report["claims"]]) + "\n")
    folder = Path(report["folder"])
    typer.echo("\n".join(f"wrote {path}" for path in sorted(folder.iterdir()) if not path.name.startswith(".")))

"""The methods of the S2S benchmark: what each is called, which row of the paper it stands for, how it is trained."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models import boosting, reported_compositions
from models.crystal_trees import PARAMETERS, ROUNDS
from models.graph_training import PUBLISHED, TRIED, GraphModel
from models.s2snet import CONFIGS, NamedConfig, S2SNetConfig
from models.training import Recipe, resolve_device
from tasks.exceptions import InputError
from tasks.s2snet_data import describe_network
from tasks.settings import BenchmarkSettings

BASELINES = "baselines"
TREES = "trees"
TREES_WITH_REPORTS = "trees-reports"
FOREST = "Magpie, random forest"  # the paper's "Statistic"
PUBLISHED_WIDTH = 512
SHORT: dict[str, int] = {"width": 16, "printed_epochs": 3, "pretraining_epochs": 1, "graph_epochs": 4}
MAIN_LAYERS = 10  # of the paper's tables 2 and 4
SCALED_BATCH = 32  # of the paper's reading where it is scaled down; the rate grows in proportion


class Method(BaseModel):
    """One method; small enough to pass between tasks.

    Attributes
    ----------
    name, title
        For the command line, and for people. The method ``baselines`` stands for several models with their own titles.
    pretrained
        Learns without classes first: hidden elements, or formation energies (graph networks).
    reports
        Learns from reports without a crystal, too.
    of
        Names of the two methods that are blended; a blend is not trained itself.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    family: Literal[
        "baselines",
        "cgcnn",
        "megnet",
        "s2snet",
        "trees",
        "blend",
        "blend-pretrained",
        "reports",
        "blend-reports",
        "paper",
    ]
    pretrained: bool = False
    reports: bool = False
    tuned: bool = False
    layers: int | None = None
    lattice: bool = True
    of: tuple[str, ...] = ()

    @property
    def is_graph(self) -> bool:
        """Whether it is a graph network of other authors."""
        return self.family in PUBLISHED


def choose_size(settings: BenchmarkSettings) -> BenchmarkSettings:
    """The settings with widths and epochs of their size, where they name none; ``auto`` asks for a GPU."""
    size = settings.size
    if size == "auto":
        size = "published" if resolve_device(settings.device) == "cuda" else "short"
    chosen = {"size": size, "width": PUBLISHED_WIDTH}
    if size == "short":
        chosen |= SHORT
        if settings.epochs:
            del chosen["printed_epochs"]
    given = {name: value for name in chosen if (value := getattr(settings, name)) is not None and name != "size"}
    return settings.model_copy(update=chosen | given)


def list_methods(settings: BenchmarkSettings, energies: bool = False) -> list[Method]:
    """All methods that the settings allow, those of the paper's tables among them.

    Parameters
    ----------
    energies
        Whether formation energies are known, from which the graph networks can be pre-trained.
    """
    found = [Method(name=BASELINES, title="baselines", family="baselines")]
    for family, title in (("cgcnn", "CGCNN"), ("megnet", "MEGNet")):
        for tuned in (False, True):
            name, shown = (f"{family}-tuned", f"{title}, tuned") if tuned else (family, title)
            names: dict[str, Any] = {"family": family, "tuned": tuned}
            found.append(Method(name=name, title=shown, **names))
            if energies:
                names["pretrained"] = True
                found.append(Method(name=f"{name}-pretrained", title=f"{shown}, pre-trained", **names))
    found.append(Method(name="s2snet", title="S2SNet", family="s2snet"))
    found.append(Method(name="s2snet-pretrained", title="S2SNet, pre-trained", family="s2snet", pretrained=True))
    found.append(Method(name=TREES, title="S2SNet's trees", family="trees"))
    for ending, words in (("", ""), ("-pretrained", ", pre-trained")):
        title, of = f"S2SNet{words}, with trees", (f"s2snet{ending}", TREES)
        blended: dict[str, Any] = {"name": f"blend{ending}", "family": f"blend{ending}", "pretrained": bool(ending)}
        found.append(Method(title=title, of=of, **blended))
    found += _with_reports() if settings.reports else []
    main = main_layers(settings)
    for layers in sorted(settings.layers, key=lambda count: (count != main, count)):
        title = f"S2SNet as printed, {layers} layers"
        given: dict[str, Any] = {"family": "paper", "layers": layers}
        name = f"paper-{layers}-pretrained"
        found.append(Method(name=name, title=f"{title}, pre-trained", pretrained=True, **given))
        if layers != main:
            continue
        found.append(Method(name=f"paper-{layers}", title=title, **given))
        given["lattice"], title = False, f"{title}, no lattice"
        found.append(Method(name=f"paper-{layers}-no-lattice", title=title, **given))
        name, title = f"paper-{layers}-no-lattice-pretrained", f"{title}, pre-trained"
        found.append(Method(name=name, title=title, pretrained=True, **given))
    return found


def _with_reports() -> list[Method]:
    """Methods that learn from reports without a crystal, too."""
    blend: dict[str, Any] = {"name": "blend-reports", "family": "blend-reports", "of": ("s2snet", TREES_WITH_REPORTS)}
    return [
        Method(name="reports", title="Reports alone", family="reports", reports=True),
        Method(name=TREES_WITH_REPORTS, title="S2SNet's trees, with reports", family="trees", reports=True),
        Method(title="S2SNet, with trees and reports", reports=True, **blend),
    ]


def choose_methods(settings: BenchmarkSettings, energies: bool = False) -> list[Method]:
    """The methods that the settings ask for, by name or family; the baselines always stand beside them.

    Raises
    ------
    InputError
        For a name that is neither; it names those that are.
    """
    known = list_methods(settings, energies)
    names = [name for method in known for name in (method.name, method.family)]
    for name in settings.methods:
        if name not in names and name in {method.name for method in _with_reports()}:
            raise InputError(f"--methods {name} needs a table of reports: give it with --reports")
        if name not in names:
            raise InputError(f"--methods {name!r} is not one of {', '.join(dict.fromkeys(names))}")
    wanted = {*(settings.methods or names), BASELINES}
    chosen = [method for method in known if {method.name, method.family} & wanted]
    needed = {name for method in chosen for name in method.of}
    return [method for method in known if method in chosen or method.name in needed]


def main_layers(settings: BenchmarkSettings) -> int:
    """Depth of the paper's reading in its tables 2 and 4: 10 layers, or the nearest to it that is asked for."""
    return min(settings.layers, key=lambda count: (abs(count - MAIN_LAYERS), count))


def s2snet_of(method: Method, settings: BenchmarkSettings) -> NamedConfig:
    """Network and recipes of S2SNet in one of its readings, as large as the settings say.

    Without pre-training, nothing is frozen.
    """
    epochs = settings.epochs
    if method.family == "paper":
        epochs = settings.printed_epochs or epochs
        named = paper_reading(settings.width or PUBLISHED_WIDTH, method.layers or MAIN_LAYERS, method.lattice)
    else:
        if settings.config not in CONFIGS:
            raise InputError(f"S2SNet has no configuration {settings.config!r}; choose one of {', '.join(CONFIGS)}")
        named = CONFIGS[settings.config]
    recipe = named.pretraining or named.finetuning
    pretraining = with_epochs(recipe, settings.pretraining_epochs or epochs)
    finetuning = with_epochs(named.finetuning, epochs)
    return named._replace(pretraining=pretraining, finetuning=finetuning, freeze=named.freeze and method.pretrained)


def paper_reading(width: int, layers: int, lattice: bool) -> NamedConfig:
    """The network as printed; below the published width, all widths and the number of heads shrink with it."""
    named = CONFIGS["paper"]
    published = named.network
    changes: dict[str, Any] = {"layers": layers} | ({} if lattice else {"lattice": "none"})
    if width == published.width:
        return named._replace(network=published.model_copy(update=changes))
    heads = next(count for count in (16, 8, 4, 2, 1) if width % count == 0 and (width >= 8 * count or count == 1))
    changes |= {"width": width, "heads": heads, "feed_forward": 4 * width, "gaussians": max(width, 2)}
    rate = named.finetuning.learning_rate * SCALED_BATCH / named.finetuning.batch_size
    scaled = {"batch_size": SCALED_BATCH, "learning_rate": rate}
    return NamedConfig(
        network=S2SNetConfig(**(published.model_dump() | changes)),
        pretraining=named.pretraining and named.pretraining.model_copy(update=scaled),
        finetuning=named.finetuning.model_copy(update=scaled),
        freeze=named.freeze,
    )


def graphs_of(method: Method, settings: BenchmarkSettings) -> dict[str, GraphModel]:
    """Settings of a graph network by name: the published ones alone, or those that are tried."""
    models = TRIED[method.family] if method.tuned else {"published": PUBLISHED[method.family]}
    return {
        name: model._replace(recipe=with_epochs(model.recipe, settings.graph_epochs)) for name, model in models.items()
    }


def with_epochs(recipe: Recipe, epochs: int | None) -> Recipe:
    """The recipe with other epochs, if any are given."""
    return recipe.model_copy(update={"epochs": epochs}) if epochs else recipe


def describe_method(method: Method, settings: BenchmarkSettings) -> dict[str, Any]:
    """Everything that a method's predictions depend on beside data, fold and seed, as a document."""
    if method.family == "baselines":
        return {"name": method.name}
    if method.of:
        return {"name": method.name, "of": list(method.of)}
    trees = {"rounds": ROUNDS, "parameters": boosting.PARAMETERS | PARAMETERS}
    reports = {
        "rounds": reported_compositions.ROUNDS,
        "parameters": boosting.PARAMETERS | reported_compositions.PARAMETERS,
        "doped": reported_compositions.DOPED,
        "parts": reported_compositions.PARTS,
    }
    if method.family in {"trees", "reports"}:
        found = {"trees": trees} if method.family == "trees" else {}
        return {"name": method.name, **found, **({"reports": reports} if method.reports else {})}
    if method.is_graph:
        models = graphs_of(method, settings)
        found = {
            name: {"network": model.network.model_dump(), "recipe": model.recipe.model_dump()}
            for name, model in models.items()
        }
        return {"name": method.name, "pretrained": method.pretrained, "models": found}
    document = describe_network(s2snet_of(method, settings))
    if not method.pretrained:
        del document["pretraining"]
    return {"pretrained": method.pretrained, **document}


def check_methods(methods: Sequence[Method], settings: BenchmarkSettings) -> None:
    """Raise InputError for a network that cannot be made of the settings, before anything is trained."""
    for method in methods:
        describe_method(method, settings)

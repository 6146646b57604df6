"""Masked band modelling: BNAS learns from grids without a label to restore patches that are hidden from it.

After masked image modelling (Xie et al., SimMIM, CVPR 2022): a learnt token stands for each hidden patch, and a linear
decoder restores its energies; the error counts on hidden patches only. What is restored are the energies as the first
layer norm of the network shows them, mean 0 and variance 1 in each patch (He et al., CVPR 2022, normalise the same
way), so 1 is the error of an answer of zeros. The decoder gives the difference from each band's mean over the visible
patches, which it is handed: else most of the learning goes into copying where each band lies. So an untrained network
answers as that baseline does.

A patch is hidden together with that at -k: E(k) = E(-k), and a patch could else be copied from there.

Shapes as in ``models.bnas``; N patches of a grid, P energies of a patch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.augmentation import IMAGES, some_images
from models.bnas import CONFIGS, Bnas, BnasConfig, patchify
from models.checkpoints import content_hash
from models.exceptions import ModelInputError
from models.training import CHECKPOINT_SECONDS, AfterEpoch, Extras, Recipe, TrainingLog, build, fit

BATCH = 64  # grids at once where nothing is learnt
HELD_OUT_SEED = 1  # of the patches that are hidden from the held-out materials
START = 0.02  # standard deviation of the mask token at the start, as in SimMIM
SHAPING = ("embed_dim", "depth", "heads", "head_dim", "mlp_dim", "bands", "mesh", "patch", "window_ev")
OWN = "output."  # what the trunk does not share: the layer that gives Tc

RECIPES = {
    "paper": Recipe(
        epochs=200, batch_size=64, learning_rate=3e-4, weight_decay=0.05, warmup=0.05, schedule="cosine", clip=1.0
    ),
    "starter": Recipe(
        epochs=200, batch_size=16, learning_rate=3e-3, weight_decay=0.05, warmup=0.05, schedule="cosine", clip=1.0
    ),
    "best": Recipe(
        epochs=200, batch_size=16, learning_rate=3e-3, weight_decay=0.05, warmup=0.05, schedule="cosine", clip=1.0
    ),
    "tiny": Recipe(epochs=2, batch_size=8, learning_rate=1e-3, clip=1.0),
}

Batch = tuple[Tensor, Tensor]  # energies (B, C, M, M, M), and which patches are hidden, (B, N) bool


class MaskedBnas(nn.Module):
    """BNAS without its last layer, and a linear decoder that restores the hidden patches."""

    def __init__(self, config: BnasConfig) -> None:
        super().__init__()
        self.trunk = Bnas(config.model_copy(update={"composition": None}))
        del self.trunk.output
        self.mask_token = nn.Parameter(START * torch.randn(1, 1, config.embed_dim))
        self.decoder = nn.Linear(config.embed_dim, config.bands * config.patch**3)
        nn.init.zeros_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, energies: Tensor, hidden: Tensor) -> Tensor:
        """All patches restored, (B, N, P), from those that are not ``hidden``; the answers do not see the others."""
        seen_BND = torch.where(hidden.unsqueeze(-1), self.mask_token, self.trunk.embed(energies))
        x_BTD = self.trunk.with_positions(seen_BND)
        for block in self.trunk.blocks:
            x_BTD = block(x_BTD)
        shown = shown_patches(energies, self.trunk.config.patch)
        known = visible_mean(shown, hidden, self.trunk.config.bands)
        return torch.as_tensor(known + self.decoder(self.trunk.norm(x_BTD[:, 1:])))


@dataclass(frozen=True, eq=False)
class MaskedGrids:
    """Training samples: one random image of each grid an epoch, with patches hidden anew.

    ``inputs`` (n, C, M, M, M) as ``models.bnas.prepare`` gives them, in memory or mapped from a file; ``patch`` as in
    the network's configuration; ``share`` of the patches are hidden.
    """

    inputs: Tensor
    patch: int
    share: float

    def __len__(self) -> int:
        """Give the number of grids."""
        return len(self.inputs)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> Batch:
        """Give an image of each of the rows, made on the device, and which of its patches are hidden."""
        energies = self.inputs[rows.to(self.inputs.device)].to(device)
        images = some_images(energies, torch.randint(IMAGES, (len(rows),), generator=generator))
        hidden = hide_patches(energies.shape[-1] // self.patch, len(rows), self.share, generator)
        return images, hidden.to(device)


@dataclass(frozen=True, eq=False)
class HeldOutPatches:
    """Error on the hidden patches of grids that are not learnt from; the same patches each time."""

    grids: MaskedGrids

    def __call__(self, network: nn.Module, at_once: int = BATCH) -> float:
        """Give the mean over the grids; the network is in evaluation mode."""
        device = next(network.parameters()).device
        total = 0.0
        for energies, hidden in self.batches():
            for part in zip(energies.split(at_once), hidden.split(at_once), strict=True):
                total += float(masked_error(network, (part[0].to(device), part[1].to(device)))) * len(part[0])
        return total / len(self.grids)

    def batches(self) -> Iterator[Batch]:
        """Give the grids as they are, no image of them, and their hidden patches."""
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        for energies in self.grids.inputs.split(BATCH):
            patches = energies.shape[-1] // self.grids.patch
            yield energies, hide_patches(patches, len(energies), self.grids.share, generator)

    def baselines(self, learnt: MaskedGrids) -> dict[str, float]:
        """Errors of two answers that need no network, on the same patches.

        ``visible mean``: of each band, the mean over the grid's visible patches. ``training mean``: of each band and
        k point, the mean over the grids learnt from.
        """
        sums = [shown_patches(part, learnt.patch).sum(0) for part in learnt.inputs.split(BATCH)]
        known = torch.stack(sums).sum(0) / len(learnt)
        errors = {"visible mean": 0.0, "training mean": 0.0}
        for energies, hidden in self.batches():
            shown = shown_patches(energies, self.grids.patch)
            answers = {"visible mean": visible_mean(shown, hidden, energies.shape[1]), "training mean": known}
            for name, answer in answers.items():
                errors[name] += float(hidden_error(answer, shown, hidden)) * len(energies) / len(self.grids)
        return errors


def pretrain(
    config: BnasConfig,
    recipe: Recipe,
    inputs: Tensor,
    *,
    share: float = 0.6,
    held_out: Tensor | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    curves: Path | None = None,
    data: str = "",
    advance: Callable[[int], None] = lambda _count: None,
    after_epoch: AfterEpoch | None = None,
) -> tuple[dict[str, Tensor], TrainingLog]:
    """Let a BNAS restore hidden patches, from the start or from its checkpoint.

    Parameters
    ----------
    inputs
        (n, C, M, M, M) as ``models.bnas.prepare`` gives them.
    share
        Of the patches that are hidden, rounded to pairs of k and -k; at least one pair is hidden and one seen.
    held_out
        Inputs of other materials, for the validation error in the log; it decides nothing.
    checkpoint, checkpoint_seconds, curves
        As ``models.training.Extras``.
    data
        Version of the inputs, for the checkpoint; empty: a hash of them.

    Returns
    -------
    state
        Weights on the CPU by their names in ``Bnas``, all but those of its last layer: ``start`` of
        ``models.bnas_training.train_network``. There was no dropout.
    log
        Losses and validations are ``masked_error``.

    Raises
    ------
    ModelInputError
        For a share that is not between 0 and 1, or a grid of fewer than two pairs of patches.
    """
    mirror_pairs(config.patches, share)
    calm = config.model_copy(update={"embed_dropout": 0.0, "dropout": 0.0})
    network = build(lambda: MaskedBnas(calm), recipe.seed)
    if checkpoint and not data:
        data = content_hash(inputs)
    validate = None if held_out is None else HeldOutPatches(MaskedGrids(held_out, config.patch, share))
    log = fit(
        network,
        masked_error,
        MaskedGrids(inputs, config.patch, share),
        recipe,
        device=device,
        extras=Extras(checkpoint, checkpoint_seconds, validate=validate, curves=curves, data=data),
        advance=advance,
        after_epoch=after_epoch,
    )
    return {name: value.detach().cpu().contiguous() for name, value in network.trunk.state_dict().items()}, log


def masked_error(network: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the restored energies over the hidden patches, those of a layer-normed patch as unit."""
    energies, hidden = batch
    restored = network(energies, hidden)
    patch = round((restored.shape[-1] / energies.shape[1]) ** (1 / 3))
    return hidden_error(restored, shown_patches(energies, patch), hidden)


def hidden_error(restored: Tensor, shown: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared difference of (B, N, P) energies over the hidden patches, (B, N) bool."""
    errors_BN = (restored - shown).square().mean(-1)
    return (errors_BN * hidden).sum() / hidden.sum()


def shown_patches(energies: Tensor, patch: int) -> Tensor:
    """Patches (B, N, P) with mean 0 and variance 1 each, as BNAS' first layer norm shows them before its gain."""
    patches = patchify(energies, patch)
    return functional.layer_norm(patches, patches.shape[-1:])


def visible_mean(shown: Tensor, hidden: Tensor, bands: int) -> Tensor:
    """For all patches, (B, 1, P), the mean of each band over the visible ones."""
    means_BNC = shown.unflatten(-1, (-1, bands)).mean(-2)
    seen_BN1 = (~hidden).unsqueeze(-1)
    means_B1C = (means_BNC * seen_BN1).sum(1, keepdim=True) / seen_BN1.sum(1, keepdim=True)
    return means_B1C.repeat(1, 1, shown.shape[-1] // bands)  # the bands run fastest


def hide_patches(patches: int, samples: int, share: float, generator: torch.Generator) -> Tensor:
    """Which patches are hidden, (samples, patches^3) bool in ``patchify``'s order: random pairs of k and -k.

    Parameters
    ----------
    patches
        Along an axis.
    generator
        On the CPU.

    Raises
    ------
    ModelInputError
        As ``pretrain``.
    """
    pair_N, count = mirror_pairs(patches, share)
    order = torch.rand(samples, int(pair_N.max()) + 1, generator=generator).argsort(1)
    return (order < count)[:, pair_N]


@lru_cache(maxsize=8)
def mirror_pairs(patches: int, share: float) -> tuple[Tensor, int]:
    """Number of the pair that each patch is of, (patches^3,), and how many pairs are hidden.

    On a Γ-centred mesh the points at -k of a patch lie in the opposite one, but for a layer in each direction.
    """
    numbers = torch.arange(patches**3)
    first = torch.minimum(numbers, patches**3 - 1 - numbers)  # the opposite patch, in C order of the axes
    pairs = int(first.max()) + 1
    if not 0 < share < 1 or pairs < 2:
        raise ModelInputError(
            f"Patches can be hidden where the share is between 0 and 1 and a grid has at least 2 pairs of patches; "
            f"here {share=} and {pairs} pairs"
        )
    return first, min(max(round(share * pairs), 1), pairs - 1)


def choose_pretraining(name: str) -> tuple[BnasConfig, Recipe]:
    """The named network and its recipe of pre-training; KeyError for an unknown name."""
    return CONFIGS[name][0], RECIPES[name]


def trunk_differences(pretrained: BnasConfig, wanted: BnasConfig) -> list[str]:
    """Settings in which two networks differ so that one cannot start from the other's weights, in words."""
    return [
        f"{name} {getattr(pretrained, name)} and not {getattr(wanted, name)}"
        for name in SHAPING
        if getattr(pretrained, name) != getattr(wanted, name)
    ]

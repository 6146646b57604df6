"""Train S2SNet: first to guess hidden elements of crystals, then to tell superconductors from others, and their Tc."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.crystals import CrystalGraph, batches_by_size, collate, collate_by_size, crystals_hash
from models.exceptions import ModelInputError
from models.s2snet import NamedConfig, S2SNet
from models.s2snet_pretraining import HiddenElements, Parts, masked_loss, start_from
from models.training import Extras, build, fit

TEMPERATURE_WEIGHT = 0.3  # of the error of ln(Tc/K + 1), beside the cross entropy


@dataclass(frozen=True, eq=False)
class LabelledCrystals:
    """Training samples: crystals, their (crystals,) labels 0 or 1, and ln(Tc/K + 1), NaN or None where unknown."""

    crystals: Sequence[CrystalGraph]
    labels: np.ndarray
    log_tc: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.crystals)

    def __call__(self, rows: Tensor, generator: torch.Generator, device: torch.device) -> Parts:
        """Crystals ``rows`` in parts of similar size, each with (B, 2) float32 labels and ln(Tc/K + 1)."""
        del generator
        chosen = rows.numpy()
        unknown = np.full(len(self), np.nan)
        columns = [self.labels, unknown if self.log_tc is None else self.log_tc]
        targets = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)[chosen])
        parts = collate_by_size([self.crystals[row] for row in chosen])
        return [(batch.to(device), targets[part].to(device)) for part, batch in parts]


def train_network(
    named: NamedConfig,
    crystals: Sequence[CrystalGraph],
    labels: np.ndarray,
    pretraining: Sequence[CrystalGraph],
    seed: int,
    *,
    log_tc: np.ndarray | None = None,
    positive_share: float | None = None,
    start: Mapping[str, Tensor] | None = None,
    device: str = "auto",
    devices: int = 1,
    checkpoint: Path | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> S2SNet:
    """Make, pre-train and fine-tune a network.

    Parameters
    ----------
    crystals, labels
        Crystals and their (crystals,) labels 0 or 1.
    pretraining
        Crystals whose elements are guessed first, labelled or not; none: no pre-training.
    seed
        Of initial weights, order, hidden atoms and dropout.
    log_tc
        (crystals,) ln(Tc/K + 1), NaN where unknown, for a network with this output.
    positive_share
        Share of superconductors among the crystals of label 0 (see ``positive_unlabelled_loss``); none: these are
        all taken at their word.
    start
        Pre-trained trunk (``models.s2snet_pretraining.trunk_state``) in the place of a pre-training here.
    device, devices
        As for ``models.training.fit``.
    checkpoint
        Files beside this path are written between epochs and gone on from.
    advance
        Called with 1 after each epoch.

    Raises
    ------
    ModelInputError
        If the trunk is to be kept fixed, and nothing pre-trains it.
    """
    check_frozen(named, pretrained=start is not None or (named.pretraining is not None and len(pretraining) > 0))
    network = build(lambda: S2SNet(named.network), seed)
    network.fit_descriptors(collate([crystal]) for crystal in crystals)
    if start is not None:
        start_from(network, start)
    elif named.pretraining is not None and len(pretraining):
        recipe = named.pretraining.model_copy(update={"seed": seed})
        extras = _extras(checkpoint, "pretraining", pretraining)
        hidden = HiddenElements(pretraining, named.masking)
        fit(network, masked_loss, hidden, recipe, device=device, devices=devices, extras=extras, advance=advance)
    if named.freeze:
        network.freeze_trunk()
    recipe = named.finetuning.model_copy(update={"seed": seed})
    extras = _extras(checkpoint, "finetuning", crystals, labels, log_tc)
    samples = LabelledCrystals(crystals, labels, log_tc)
    loss = partial(supervised_loss, positive_share=positive_share)
    fit(network, loss, samples, recipe, device=device, devices=devices, extras=extras, advance=advance)
    return network


def _extras(
    checkpoint: Path | None, stage: str, crystals: Sequence[CrystalGraph], *targets: np.ndarray | None
) -> Extras:
    """The checkpoint of a stage beside this path, and the data that it is of."""
    if checkpoint is None:
        return Extras()
    return Extras(checkpoint.with_name(f"{checkpoint.name}.{stage}"), data=crystals_hash(crystals, *targets))


def check_frozen(named: NamedConfig, *, pretrained: bool) -> None:
    """Raise ModelInputError where the trunk is to be kept fixed without pre-training: its weights would be random."""
    if named.freeze and not pretrained:
        raise ModelInputError(
            "--freeze keeps the pre-trained trunk fixed, but there is no pre-training: give --pretrained latest after "
            "`meissner pretrain s2snet`, or leave --freeze out"
        )


def remove_checkpoints(checkpoint: Path) -> None:
    """Remove what ``train_network`` left beside this path."""
    for stage in ("pretraining", "finetuning"):
        checkpoint.with_name(f"{checkpoint.name}.{stage}").unlink(missing_ok=True)


def supervised_loss(network: nn.Module, parts: Parts, positive_share: float | None = None) -> Tensor:
    """Cross entropy of the labels, mean over the crystals, and the error of ln(Tc/K + 1) where there is one."""
    answers = torch.cat([network(batch, everything=True) for batch, _ in parts])
    targets = torch.cat([targets for _, targets in parts])
    logits, labels = answers[:, 0], targets[:, 0]
    if positive_share:
        loss = positive_unlabelled_loss(logits, labels, positive_share)
    else:
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
    known = torch.isfinite(targets[:, 1])
    if answers.shape[1] > 1 and known.any():
        loss = loss + TEMPERATURE_WEIGHT * functional.smooth_l1_loss(answers[known, 1], targets[known, 1])
    return loss


def positive_unlabelled_loss(logits: Tensor, labels: Tensor, positive_share: float) -> Tensor:
    """Cross entropy where label 0 means "not known", after Kiryo et al., NeurIPS 2017 (non-negative risk).

    The unlabelled hold ``positive_share`` superconductors; what these would add to the loss as negatives is estimated
    from the known ones and taken off, but never below 0. Without any share it is the usual cross entropy.

    Parameters
    ----------
    logits, labels
        (B,); label 1 is a known superconductor.
    """
    positive, unlabelled = labels > 0.5, labels <= 0.5
    as_positive, as_negative = functional.softplus(-logits), functional.softplus(logits)
    none = logits.sum() * 0
    of_known = as_positive[positive].mean() if positive.any() else none
    known_as_negative = as_negative[positive].mean() if positive.any() else none
    of_unlabelled = as_negative[unlabelled].mean() if unlabelled.any() else none
    negative = (of_unlabelled - positive_share * known_as_negative).clamp(min=0)
    share = unlabelled.float().mean()
    return (1 - share) * of_known + share * (positive_share * of_known + negative)


def predict_logits(network: S2SNet, crystals: Sequence[CrystalGraph]) -> np.ndarray:
    """(crystals,) float64 logits in the order given; the network is left in evaluation mode."""
    return predict_answers(network, crystals)[:, 0]


def predict_answers(network: S2SNet, crystals: Sequence[CrystalGraph]) -> np.ndarray:
    """(crystals, 2) float64 logits and ln(Tc/K + 1), NaN where the network has no such output.

    They come in the order given; the network is left in evaluation mode.
    """
    device = next(network.parameters()).device
    answers = np.full((len(crystals), 2), np.nan)
    network.eval()
    with torch.inference_mode():
        for rows in batches_by_size(crystals):
            batch = collate([crystals[row] for row in rows]).to(device)
            found = network(batch, everything=True).double().cpu().numpy()
            answers[rows, : found.shape[1]] = found
    return answers

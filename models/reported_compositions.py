"""What superconductors that were reported without a crystal teach of a composition.

Few reports find a crystal, and the others name a composition. Gradient boosting learns to tell reported superconductors
from the crystals that are not known to superconduct, by composition alone; its logit is one more descriptor beside
those of ``models.crystal_trees``. A crystal's own compound must not be among the reports that its logit comes from:
`Reports.apart_from` leaves out its chemical system and its doped forms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.model_selection import StratifiedGroupKFold

from models.boosting import predict_logits, train_boosting
from models.composition_branch import composition_fractions
from models.composition_descriptors import descriptor_count, element_properties, fraction_descriptors
from models.crystals import ELEMENTS
from models.exceptions import ModelInputError

DOPED = 0.1  # share of the atoms in which a doped form may differ from its parent
ROUNDING = 1e-5  # of fractions in single precision: exactly a tenth is within a tenth
PARTS = 5  # of the training crystals, each asked by a model that has not seen it
ROUNDS = 300
PARAMETERS = {"num_leaves": 63, "learning_rate": 0.08}
AT_ONCE = 1024  # compositions whose descriptors are in memory together


@dataclass(frozen=True, eq=False)
class Reports:
    """Compositions of reported superconductors.

    Attributes
    ----------
    compositions
        (n, 239) float64: 144 descriptors, and the fractions of the elements, as `crystal_features` begins.
    families
        (n,) family of each, empty where it is not given.
    years
        (n,) year of the first report, NaN where unknown.
    """

    compositions: np.ndarray
    families: np.ndarray
    years: np.ndarray

    def __len__(self) -> int:
        return len(self.compositions)

    def where(self, kept: np.ndarray) -> "Reports":
        """The reports that an (n,) mask keeps."""
        return Reports(self.compositions[kept], self.families[kept], self.years[kept])

    def apart_from(self, crystals: np.ndarray) -> "Reports":
        """The reports that are no relatives of m crystals, (m, 239 or more) features.

        Left out are reports of the chemical system of a crystal, and its doped forms: compositions that become the
        crystal's by exchanging at most a tenth of the atoms, whatever their elements.
        """
        if not len(self) or not len(crystals):
            return self
        same = np.isin(chemical_systems(self.compositions), chemical_systems(crystals))
        own, theirs = fractions_of(self.compositions), fractions_of(crystals)
        nearest = [
            cdist(part, theirs, "cityblock").min(axis=1) for part in np.array_split(own, len(own) // AT_ONCE + 1)
        ]
        return self.where(~same & (np.concatenate(nearest) / 2 > DOPED + ROUNDING))


def reports_of(
    formulas: Sequence[str], families: Sequence[str] | None = None, years: Sequence[int | None] | None = None
) -> Reports:
    """Reports of superconductors by their formulas; ModelInputError for an element beyond Am."""
    size = len(formulas)
    known = np.full(size, np.nan) if years is None else np.array([np.nan if y is None else float(y) for y in years])
    named = np.array([""] * size if families is None else list(families), dtype=object)
    return Reports(composition_features(formulas), named, known)


def composition_features(formulas: Sequence[str]) -> np.ndarray:
    """(n, 239) float64 descriptors of compositions and fractions of their elements."""
    fractions = composition_fractions(list(formulas))
    table = torch.from_numpy(element_properties().copy())
    found = [fraction_descriptors(part, table) for part in fractions.split(AT_ONCE)]
    return torch.cat([torch.cat(found), fractions], dim=1).double().numpy()


def fractions_of(features: np.ndarray) -> np.ndarray:
    """(n, 95) fractions of the elements, of (n, 239 or more) features."""
    first = descriptor_count()
    return features[:, first : first + ELEMENTS]


def chemical_systems(features: np.ndarray) -> np.ndarray:
    """(n,) a key of the set of elements of (n, 239 or more) features, equal for equal sets everywhere."""
    present = np.packbits(fractions_of(features) > 0, axis=1)
    return np.array([row.tobytes().hex() for row in present])


def system_weights(features: np.ndarray) -> np.ndarray:
    """(n,) 1 / sqrt(reports of the chemical system): hundreds of dopings of one compound are not hundreds of them."""
    _, system, count = np.unique(chemical_systems(features), return_inverse=True, return_counts=True)
    return np.asarray(1 / np.sqrt(count[system]))


def fit_reported(reports: Reports, others: np.ndarray, seed: int) -> str:
    """LightGBM's text of a model that tells reports from crystals that are not known to superconduct.

    The others come as (m, 239 or more) features. Both sides weigh the same, and reports by their ``system_weights``.

    Raises
    ------
    ModelInputError
        If there is no report, or no other crystal.
    """
    if not len(reports) or not len(others):
        raise ModelInputError(
            f"Nothing can be learnt from {len(reports)} reports of superconductors beside {len(others)} other "
            "crystals; reports of a held-out chemical system and its doped forms do not count"
        )
    width = reports.compositions.shape[1]
    weight = system_weights(reports.compositions)
    weight *= len(others) / weight.sum()
    return train_boosting(
        np.concatenate([reports.compositions, others[:, :width]]),
        np.concatenate([np.ones(len(reports)), np.zeros(len(others))]),
        np.concatenate([weight, np.ones(len(others))]),
        objective="binary",
        rounds=ROUNDS,
        seed=seed,
        **PARAMETERS,
    )


def ask_reported(model: str, features: np.ndarray) -> np.ndarray:
    """(n,) logits of (n, 239 or more) features by what ``fit_reported`` gives."""
    return predict_logits(model, features[:, : descriptor_count() + ELEMENTS])


def held_out_logits(
    reports: Reports, features: np.ndarray, labels: np.ndarray, seed: int, measured: np.ndarray | None = None
) -> np.ndarray:
    """(n,) logits of crystals that are learnt from, each by a model that has seen neither it nor reports of relatives.

    0, which says nothing, where no report or no other crystal is left to learn from.

    Parameters
    ----------
    features, labels
        (n, 239 or more) features, and 0 or 1; see `can_learn` for what must be there.
    measured
        (n, 239 or more) features of the compositions that were measured, where these differ from the crystals'.
    """
    systems, found = chemical_systems(features), np.zeros(len(labels))
    parts = min(PARTS, len(np.unique(systems)), np.bincount(labels.astype(np.int64)).max())
    for train, test in StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(features, labels, systems):
        others = features[train[labels[train] == 0]]
        apart = reports.apart_from(features[test])
        if measured is not None:
            apart = apart.apart_from(measured[test])
        if len(others) and len(apart):
            found[test] = ask_reported(fit_reported(apart, others, seed), features[test])
    return found


def can_learn(reports: Reports, features: np.ndarray, labels: np.ndarray) -> bool:
    """Whether n crystals can learn from reports: there are some, both classes, two of one of them, and two systems."""
    classes = np.bincount(np.asarray(labels, dtype=np.int64), minlength=2)
    several = len(np.unique(chemical_systems(features))) > 1 and classes.min() > 0 and classes.max() > 1
    return len(reports) > 0 and bool(several)

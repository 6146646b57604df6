"""How a crystal network sees the elements: correlations of their embeddings, and a plane map of them."""

import functools

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element

from models.crystals import ELEMENTS
from models.exceptions import ModelInputError

SYMBOLS = tuple(Element.from_Z(number).symbol for number in range(1, ELEMENTS + 1))
PERPLEXITY = 12.0  # about how many neighbours an element keeps near; 95 elements
SEED = 0


@functools.cache
def mendeleev_order() -> tuple[str, ...]:
    """The 95 symbols in Mendeleev's order (Pettifor, Solid State Communications 51, 31, 1984)."""
    return tuple(sorted(SYMBOLS, key=lambda symbol: Element(symbol).mendeleev_no))


def pearson_matrix(embeddings: NDArray) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Pearson correlation of the elements' embeddings, in Mendeleev's order.

    Parameters
    ----------
    embeddings
        (95, width), of Z = 1 to 95.

    Returns
    -------
    The 95 symbols, and (95, 95) in [-1, 1]; 0 beside the diagonal for an element whose embedding is constant.
    """
    values = _checked(embeddings)
    order = mendeleev_order()
    centred = values[[SYMBOLS.index(symbol) for symbol in order]]
    centred = centred - centred.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    directions = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    found = np.clip(directions @ directions.T, -1.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return order, found


def place_elements(embeddings: NDArray, seed: int = SEED) -> NDArray[np.float64]:
    """(95, 2) places of the elements Z = 1 to 95 by t-SNE (van der Maaten and Hinton, JMLR 9, 2579, 2008).

    Near elements have alike embeddings, by Pearson correlation; far distances and directions mean nothing.
    """
    from sklearn.manifold import TSNE

    _, correlations = pearson_matrix(embeddings)
    back = [mendeleev_order().index(symbol) for symbol in SYMBOLS]
    distances = np.maximum(1 - correlations[np.ix_(back, back)], 0.0)
    np.fill_diagonal(distances, 0.0)
    tsne = TSNE(metric="precomputed", init="random", perplexity=PERPLEXITY, random_state=seed, n_jobs=1)
    return np.asarray(tsne.fit_transform(distances), dtype=np.float64)


def group_contrast(embeddings: NDArray) -> tuple[float, float]:
    """Mean correlation of two elements of one group of the periodic table, and of two of different groups.

    Lanthanides and actinides are left out, as they have no group of their own.
    """
    symbols, found = pearson_matrix(embeddings)
    elements = [Element(symbol) for symbol in symbols]
    kept = np.array([not (element.is_lanthanoid or element.is_actinoid) for element in elements])
    groups = np.array([element.group for element in elements])
    pairs = np.triu(kept[:, None] & kept[None], k=1)
    same = groups[:, None] == groups[None]
    return float(found[pairs & same].mean()), float(found[pairs & ~same].mean())


def likeness(one: NDArray, other: NDArray) -> float:
    """Pearson correlation, -1 to 1, of two embeddings' correlation matrices beside the diagonal."""
    beside = np.triu_indices(ELEMENTS, k=1)
    first, second = (pearson_matrix(embeddings)[1][beside] for embeddings in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def _checked(embeddings: NDArray) -> NDArray[np.float64]:
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or len(values) != ELEMENTS or values.shape[1] < 2 or not np.isfinite(values).all():
        raise ModelInputError(
            f"Embeddings of shape {values.shape} are not {ELEMENTS} finite rows of at least 2 numbers"
        )
    return values

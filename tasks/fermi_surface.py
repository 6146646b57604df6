"""Fermi surfaces as triangles, in the first Brillouin zone."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_TRIANGLES = 14_000  # of a Fermi surface; finer ones are drawn from every second k point


def crossing_bands(grid: NDArray) -> list[int]:
    """Which of the bands (n_bands, k, k, k), eV relative to E_F, lie on both sides of E_F."""
    return [int(band) for band in np.flatnonzero((grid.min(axis=(1, 2, 3)) < 0) & (grid.max(axis=(1, 2, 3)) > 0))]


def fermi_meshes(
    reciprocal: NDArray, facets: Sequence[NDArray], grid: NDArray
) -> list[tuple[int, NDArray[np.float64], NDArray[np.int64]]]:
    """Band, vertices (n, 3) in 1/angstrom and triangles (m, 3) of each sheet, inside the zone."""
    crossing = crossing_bands(grid)
    for step in (1, 2):
        sheets = [_isosurface(grid[band][::step, ::step, ::step], reciprocal) for band in crossing]
        if sum(len(triangles) for _, triangles in sheets) <= MAX_TRIANGLES:
            break
    clipped = [_fill_zone(vertices, triangles, reciprocal, facets) for vertices, triangles in sheets]
    return [(band, *mesh) for band, mesh in zip(crossing, clipped, strict=True) if len(mesh[1])]


def _isosurface(band: NDArray, reciprocal: NDArray) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Where one band is 0 in the reciprocal cell from 0 to 1 along each axis."""
    from skimage.measure import marching_cubes

    periodic = np.pad(band, ((0, 1),) * 3, mode="wrap")
    vertices, triangles, _, _ = marching_cubes(periodic, level=0.0)
    return vertices / band.shape @ reciprocal, triangles.astype(np.int64)


def _fill_zone(
    vertices: NDArray, triangles: NDArray, reciprocal: NDArray, facets: Sequence[NDArray]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Repeat a cell's surface over the lattice and cut it at the facets of the Brillouin zone."""
    import trimesh
    from trimesh.intersections import slice_faces_plane

    reach = max(float(np.linalg.norm(facet, axis=1).max()) for facet in facets)
    pieces, faces, count = [], [], 0
    for shift in itertools.product(range(-2, 2), repeat=3):
        moved = vertices + np.array(shift) @ reciprocal
        near = (np.linalg.norm(moved, axis=1) <= reach)[triangles].any(axis=1)
        if near.any():
            pieces.append(moved)
            faces.append(triangles[near] + count)
            count += len(moved)
    if not pieces:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    points, corners = np.vstack(pieces), np.vstack(faces)
    for facet in facets:
        normal = np.cross(facet[1] - facet[0], facet[2] - facet[0])
        inward = -normal * np.sign(normal @ facet.mean(axis=0))
        points, corners, _ = slice_faces_plane(points, corners, inward, facet[0])
    mesh = trimesh.Trimesh(points, corners, process=True)
    mesh.remove_unreferenced_vertices()
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)

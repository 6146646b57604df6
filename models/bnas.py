"""BNAS: a three-dimensional vision transformer from energy bands to the critical temperature.

Source: the BNAS paper (3D-ViT over 18 bands of 32 x 32 x 32 k points, patches of 8 x 8 x 8); layers after
Dosovitskiy et al., ICLR 2021. Shapes: B samples, C bands, M mesh points an axis, P patch points an axis, T tokens
(patches and the class token), D token width, H heads, K head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.composition_branch import CompositionBranch
from models.exceptions import ModelInputError
from models.training import Recipe

HEAD_DIM = 64  # width of one head in the paper


class BnasConfig(BaseModel):
    """The network; defaults are the published optimum (Table II of the paper, 34.56 million parameters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embed_dim: int = Field(534, ge=1, description="Token width, L_d")
    depth: int = Field(3, ge=1, description="Blocks, L_t")
    heads: int = Field(64, ge=1, description="Attention heads, H_d")
    head_dim: int = Field(HEAD_DIM, ge=1, description="Width of a head")
    mlp_dim: int = Field(1038, ge=1, description="Width of the hidden layer in a block, M_d")
    embed_dropout: float = Field(0.127, ge=0, lt=1, description="Dropout after the embedding, D_e")
    dropout: float = Field(0.197, ge=0, lt=1, description="Dropout in attention and hidden layers, D_m")
    bands: int = Field(18, ge=1)
    mesh: int = Field(32, ge=1, description="k points used along each axis; finer grids are thinned to it")
    patch: int = Field(8, ge=1, description="k points of a patch along each axis")
    window_ev: float | None = Field(
        None, gt=0, description="Width w of the input scaling tanh(E / w), which keeps what is near E_F; none: E itself"
    )
    initial: Literal["library", "kaiming"] = Field(
        "library", description="Initial weights: PyTorch's, or Kaiming-normal matrices and standard-normal vectors"
    )

    centred: bool = Field(False, description="The output starts at the mean label of the training set")
    composition: int | None = Field(
        None, ge=1, description="Width of a branch of composition descriptors, joined at the head; none: bands alone"
    )

    @model_validator(mode="after")
    def _patches_fill_the_mesh(self) -> "BnasConfig":
        if self.mesh % self.patch:
            raise ValueError(f"mesh={self.mesh} is not a multiple of patch={self.patch}")
        return self

    @property
    def patches(self) -> int:
        """Patches along an axis."""
        return self.mesh // self.patch


class Attention(nn.Module):
    """Multi-head self-attention with its own layer norm; the residual is added outside."""

    def __init__(self, config: BnasConfig) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        self.heads, self.head_dim, self.dropout = config.heads, config.head_dim, config.dropout
        self.norm = nn.LayerNorm(config.embed_dim)
        self.to_qkv = nn.Linear(config.embed_dim, 3 * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, config.embed_dim), nn.Dropout(config.dropout))

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.to_qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        return q_BHTK, k_BHTK, v_BHTK

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        dropout = self.dropout if self.training else 0.0
        mixed_BHTK = functional.scaled_dot_product_attention(*self._project(x_BTD), dropout_p=dropout)
        return torch.as_tensor(self.to_out(mixed_BHTK.transpose(1, 2).flatten(2)))

    def weights(self, x_BTD: Tensor) -> Tensor:
        """Attention weights (B, H, T, T), rows sum to 1, without dropout."""
        q_BHTK, k_BHTK, _ = self._project(x_BTD)
        scores_BHTT = (q_BHTK @ k_BHTK.transpose(-1, -2)) * self.head_dim**-0.5
        return functional.softmax(scores_BHTT, dim=-1)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: BnasConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            nn.LayerNorm(config.embed_dim),
            nn.Linear(config.embed_dim, config.mlp_dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp_dim, config.embed_dim),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.attention(x_BTD)
        return torch.as_tensor(x_BTD + self.mlp(x_BTD))


@dataclass(frozen=True, eq=False)
class BnasInputs:
    """What a network is asked about: B materials.

    ``energies`` (B, C, M, M, M) as ``prepare`` gives them; ``fractions`` (B, 95) atomic fractions, column Z - 1, for a
    network that sees the composition, else None.
    """

    energies: Tensor
    fractions: Tensor | None = None

    def __len__(self) -> int:
        """Give the number of materials."""
        return len(self.energies)

    def __getitem__(self, rows: Tensor | slice) -> "BnasInputs":
        """Give some of the materials."""
        return BnasInputs(self.energies[rows], None if self.fractions is None else self.fractions[rows])

    def to(self, device: torch.device) -> "BnasInputs":
        """Give the same on a device."""
        return BnasInputs(self.energies.to(device), None if self.fractions is None else self.fractions.to(device))

    def split(self, size: int) -> list["BnasInputs"]:
        """Give them in parts of at most ``size`` materials."""
        return [self[start : start + size] for start in range(0, len(self), size)]


class Bnas(nn.Module):
    """The network, from energies as ``prepare`` gives them, (B, C, M, M, M), to ln(Tc/K + 1).

    With ``config.composition`` it takes (B, 95) atomic fractions, too.
    """

    def __init__(self, config: BnasConfig) -> None:
        super().__init__()
        self.config = config
        patch_dim = config.bands * config.patch**3
        self.embedding = nn.Sequential(
            nn.LayerNorm(patch_dim), nn.Linear(patch_dim, config.embed_dim), nn.LayerNorm(config.embed_dim)
        )
        self.class_token = nn.Parameter(torch.randn(1, 1, config.embed_dim))
        self.positions = nn.Parameter(torch.randn(1, config.patches**3 + 1, config.embed_dim))
        self.embed_dropout = nn.Dropout(config.embed_dropout)
        blocks = [Block(config) for _ in range(config.depth)]
        self.blocks: Sequence[Block] = cast(Sequence[Block], nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.composition: CompositionBranch | None = None
        self.joined: nn.Sequential | None = None
        if config.composition:
            self.composition = CompositionBranch(config.composition, config.dropout)
            self.joined = nn.Sequential(
                nn.Dropout(config.dropout),
                nn.Linear(config.embed_dim + config.composition, config.composition),
                nn.GELU(),
                nn.Dropout(config.dropout),
            )
        self.output = nn.Linear(config.composition or config.embed_dim, 1)
        if config.initial == "kaiming":
            self._start_as_published()

    def forward(self, energies: Tensor, fractions: Tensor | None = None) -> Tensor:
        """Predict (B,) ln(Tc/K + 1); ModelInputError for a wrong shape, or compositions missing or not asked for."""
        if (fractions is None) != (self.composition is None):
            wanted = "takes energies and compositions" if self.composition is not None else "takes energies alone"
            raise ModelInputError(f"This BNAS {wanted}")
        x_BTD = self.with_positions(self.embed(energies))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        state = self.norm(x_BTD[:, 0])
        if self.composition is not None and self.joined is not None:
            state = self.joined(torch.cat((state, self.composition(fractions)), dim=1))
        return torch.as_tensor(self.output(state).squeeze(-1))

    @torch.no_grad()
    def start_at(self, label: float) -> None:
        """Let the untrained network answer about ``label``."""
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.output.bias, label)

    @torch.no_grad()
    def attention_weights(self, energies: Tensor) -> list[Tensor]:
        """Weights (B, H, T, T) of each block, token 0 the class token, the others the patches in ``patchify``'s order.

        Without dropout: call it in evaluation mode.
        """
        x_BTD, weights = self.with_positions(self.embed(energies)), []
        for block in self.blocks:
            weights.append(block.attention.weights(x_BTD))
            x_BTD = block(x_BTD)
        return weights

    def embed(self, energies: Tensor) -> Tensor:
        """Tokens of the patches, (B, T - 1, D), in ``patchify``'s order; ModelInputError for a wrong shape."""
        config = self.config
        if energies.shape[1:] != (config.bands, *(config.mesh,) * 3):
            wanted = f"(samples, {config.bands}, {config.mesh}, {config.mesh}, {config.mesh})"
            raise ModelInputError(f"This BNAS takes energies of shape {wanted}, not {tuple(energies.shape)}")
        return torch.as_tensor(self.embedding(patchify(energies, config.patch)))

    def with_positions(self, patches_BTD: Tensor) -> Tensor:
        """What the blocks take, (B, T, D): the class token before those of the patches, and where each stands."""
        class_BTD = self.class_token.expand(len(patches_BTD), -1, -1)
        return torch.as_tensor(self.embed_dropout(torch.cat((class_BTD, patches_BTD), dim=1) + self.positions))

    def _start_as_published(self) -> None:
        """Kaiming-normal matrices and standard-normal vectors, as the authors' code does."""
        for weights in self.parameters():
            if weights.dim() > 1:
                nn.init.kaiming_normal_(weights)
            else:
                nn.init.normal_(weights)


def prepare(energies: Tensor, config: BnasConfig) -> Tensor:
    """Bring grids to the network's input: every so many-th k point, and the scaling. The images commute with it.

    Parameters
    ----------
    energies
        (B, C, N, N, N) float32, eV relative to E_F, on the Γ-centred fractional k points i/N; N a multiple of
        ``config.mesh``.

    Returns
    -------
    Tensor
        (B, C, M, M, M); the published network takes the energies as they are.

    Raises
    ------
    ModelInputError
        For another shape, or energies that are not finite.
    """
    given = tuple(energies.shape)
    if len(given) != 5 or given[1] != config.bands or len(set(given[2:])) != 1 or given[2] % config.mesh:
        wanted = f"{config.bands} bands on a multiple of {config.mesh} k points an axis"
        raise ModelInputError(f"Grids of shape {given} do not fit this BNAS: {wanted}")
    step = given[2] // config.mesh
    thinned = energies[..., ::step, ::step, ::step]
    if not torch.isfinite(thinned).all():
        bad = [row for row, grid in enumerate(thinned) if not torch.isfinite(grid).all()]
        raise ModelInputError(f"Energies that are not finite in {len(bad)} grids, the first at position {bad[0]}")
    return torch.tanh(thinned / config.window_ev) if config.window_ev else thinned.contiguous()


def patchify(energies: Tensor, patch: int) -> Tensor:
    """(B, C, M, M, M) to (B, (M/P)^3, P^3 C): patches in C order of the axes, inside a patch the bands run fastest."""
    batch, bands, mesh = energies.shape[:3]
    n = mesh // patch
    split = energies.reshape(batch, bands, n, patch, n, patch, n, patch)
    return split.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, n**3, patch**3 * bands)


CONFIGS: dict[str, tuple[BnasConfig, Recipe]] = {
    "paper": (
        BnasConfig(),
        Recipe(
            epochs=700,
            batch_size=64,
            optimizer="sgd",
            learning_rate=0.001,
            momentum=0.9,
            weight_decay=1e-5,
            images="all",
        ),
    ),
    # For about a hundred materials on two cores: every second k point, the energies within about 1 eV of E_F, strong
    # dropout and few epochs, because so few materials are learnt by heart at once.
    "starter": (
        BnasConfig(
            embed_dim=64,
            depth=2,
            heads=2,
            head_dim=32,
            mlp_dim=128,
            embed_dropout=0.3,
            dropout=0.3,
            mesh=16,
            patch=4,
            window_ev=1.0,
            centred=True,
        ),
        Recipe(
            epochs=20, batch_size=16, learning_rate=5e-4, weight_decay=0.05, warmup=0.1, schedule="cosine", clip=1.0
        ),
    ),
    # For a few hundred materials: a small network of the bands, every fourth k point, and the composition beside it.
    "best": (
        BnasConfig(
            embed_dim=64,
            depth=1,
            heads=2,
            head_dim=32,
            mlp_dim=128,
            embed_dropout=0.3,
            dropout=0.3,
            mesh=8,
            patch=4,
            window_ev=1.0,
            centred=True,
            composition=256,
        ),
        Recipe(epochs=60, batch_size=32, learning_rate=1e-3, weight_decay=0.1, schedule="cosine", clip=1.0),
    ),
    "tiny": (
        BnasConfig(
            embed_dim=8,
            depth=2,
            heads=2,
            head_dim=4,
            mlp_dim=16,
            embed_dropout=0.1,
            dropout=0.1,
            mesh=8,
            patch=4,
        ),
        Recipe(epochs=2, batch_size=8, learning_rate=1e-3, clip=1.0),
    ),
}

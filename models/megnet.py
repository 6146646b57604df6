"""MEGNet, a published graph network of crystals, as a baseline of S2SNet (Chen et al., Chem. Mater. 31, 3564 (2019)).

The network is matgl's (on torch-geometric). It is given distances alone: all atoms stand at the origin, and each pair
carries its distance as the offset of the neighbour's image.
"""

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.cgcnn import GraphBatch
from models.crystals import ELEMENTS


class MegnetConfig(BaseModel):
    """Architecture; the defaults are the published ones of the crystal models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: int = Field(3, ge=1, description="MEGNet blocks")
    embedding: int = Field(16, ge=1, description="Width of an element's embedding")
    gaussians: int = Field(100, ge=2, description="Gaussians that expand a distance")
    hidden: tuple[int, int, int] = Field((64, 64, 32), description="Widths inside a block")
    set2set_steps: int = Field(2, ge=1, description="Processing steps of Set2Set (matgl's default; published 3)")
    dropout: float = Field(0.0, ge=0, lt=1, description="In the blocks and before the last layers")
    cutoff: float = Field(4.0, gt=0, description="Farthest neighbour, angstrom")
    neighbours: int | None = Field(None, ge=1, description="Nearest neighbours of an atom that count; none: all")


class Megnet(nn.Module):
    """Crystals to one logit each."""

    def __init__(self, config: MegnetConfig) -> None:
        from matgl.models import MEGNet
        from pymatgen.core import Element

        super().__init__()
        self.config = config
        self.network = MEGNet(
            dim_node_embedding=config.embedding,
            dim_edge_embedding=config.gaussians,
            nblocks=config.blocks,
            hidden_layer_sizes_input=(config.hidden[0], config.hidden[-1]),
            hidden_layer_sizes_conv=config.hidden,
            hidden_layer_sizes_output=(config.hidden[-1], config.hidden[-1] // 2),
            niters_set2set=config.set2set_steps,
            element_types=tuple(Element.from_Z(number).symbol for number in range(1, ELEMENTS + 1)),
            cutoff=config.cutoff,
            dropout=config.dropout,
        )

    def forward(self, batch: GraphBatch) -> Tensor:
        """(B,) logits."""
        from torch_geometric.data import Data

        offsets = torch.zeros(len(batch.distances), 3, device=batch.distances.device)
        offsets[:, 0] = batch.distances
        graph = Data(
            node_type=batch.numbers - 1,
            pos=offsets.new_zeros(len(batch.numbers), 3),
            edge_index=batch.pairs.flip(0),
            pbc_offshift=offsets,
            batch=batch.owner,
            num_graphs=batch.size,
        )
        return self.network(graph, offsets.new_zeros(batch.size, 2)).reshape(-1)

    def forget_output(self) -> None:
        """Start the last layers anew, after a pre-training on another target."""

        def reset(layer: Any) -> None:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

        self.network.output_proj.apply(reset)

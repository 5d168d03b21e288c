"""The prefix forest: sentences with a common prefix share its tokens.

In a causal model what happens at a token depends only on the tokens up to it, so each distinct
prefix needs computing once. A node is a prefix's last token; it sees its ancestors and itself,
by an attention mask, and its position is its depth. Exact: tests compare with single sentences.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK_SIZE = 192  # nodes


@dataclass(frozen=True)
class Forest:
    """Rows of tokens as paths in trees, which are packed into chunks that share nothing.

    Nodes are numbered through all chunks, node = chunk · N + place in the chunk; chunks are
    filled up to N nodes with pads that see only themselves.
    """

    tokens: Tensor     # (chunks, N)
    positions: Tensor  # (chunks, N)
    mask: Tensor       # (chunks or 1, 1, N, N), added to attention's scores: 0 where a node sees, else -inf
    path: Tensor       # (rows, T) the nodes from a row's first token to its last; the last again beyond
    lengths: Tensor    # (rows,) how many of them there are

    def __len__(self) -> int:
        return len(self.path)

    def nodes_at(self, positions: Tensor) -> Tensor:
        """The node of a position in each row, (rows,)."""
        return self.path.gather(1, positions.unsqueeze(1)).squeeze(1)

    @property
    def nodes(self) -> int:
        return self.tokens.numel()

    @property
    def compression(self) -> float:
        """How many times more tokens the rows have than the forest has nodes, pads included."""
        return self.lengths.sum().item() / self.nodes

    def batches(self, nodes: int) -> list[slice]:
        """The chunks in batches of about this many nodes."""
        count, length = self.tokens.shape
        step = max(1, nodes // length)
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def mask_of(self, chunks: slice) -> Tensor:
        return self.mask if len(self.mask) == 1 else self.mask[chunks]

    def rows_in(self, chunks: slice, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The rows whose node, of (rows,), lies in these chunks, and its number among the nodes of these chunks."""
        length = self.tokens.shape[1]
        chunk = nodes // length
        rows = ((chunk >= chunks.start) & (chunk < chunks.stop)).nonzero().flatten()
        return rows, nodes[rows] - chunks.start * length


@dataclass
class Chunk:
    """Trees while they grow. A node's parent comes before it; the root's is -1."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)  # by parent and token

    def path(self, prefix: list[int]) -> list[int]:
        """The nodes of the longest part of a prefix that is in the tree."""
        nodes, node = [], -1
        for token in prefix:
            child = self.children.get((node, token))
            if child is None:
                break
            nodes.append(node := child)
        return nodes

    def add(self, prefix: list[int]) -> list[int]:
        """The nodes of a prefix; missing ones are added."""
        nodes = self.path(prefix)
        for token in prefix[len(nodes):]:
            parent = nodes[-1] if nodes else -1
            nodes.append(len(self.tokens))
            self.children[parent, token] = nodes[-1]
            self.tokens.append(token)
            self.parents.append(parent)
        return nodes


def plant(prefixes: list[list[int]], chunk_size: int = CHUNK_SIZE, device: torch.device | str = "cpu") -> Forest:
    """The forest of some rows of tokens.

    Rows are sorted, so that those which begin alike come to lie in the same chunk, and a chunk is
    closed when the next row does not fit. Small chunks share less; large ones waste attention on
    pairs of nodes that do not see each other.

    Args:
        prefixes: for each row its tokens.
        chunk_size: nodes in a chunk; where a single row has more, chunks are as long as it.

    Raises:
        ValueError: no rows, or an empty one.
    """
    if not prefixes or not all(prefixes):
        raise ValueError("a forest needs rows of at least one token")
    chunk_size = max(chunk_size, *map(len, prefixes))
    chunks, places = [Chunk()], {}
    for row in sorted(range(len(prefixes)), key=prefixes.__getitem__):
        prefix = prefixes[row]
        if len(chunks[-1].tokens) + len(prefix) - len(chunks[-1].path(prefix)) > chunk_size:
            chunks.append(Chunk())
        places[row] = len(chunks) - 1, chunks[-1].add(prefix)
    length = max(len(chunk.tokens) for chunk in chunks)

    tokens = torch.zeros(len(chunks), length, dtype=torch.long)
    positions = torch.zeros_like(tokens)
    sees = torch.eye(length, dtype=torch.bool).repeat(len(chunks), 1, 1)  # (chunks, N, N)
    for number, chunk in enumerate(chunks):
        tokens[number, :len(chunk.tokens)] = torch.tensor(chunk.tokens)
        for node, parent in enumerate(chunk.parents):
            if parent >= 0:
                sees[number, node] |= sees[number, parent]
                positions[number, node] = positions[number, parent] + 1

    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    path = torch.tensor([[number * length + node for node in nodes + nodes[-1:] * (lengths.max() - len(nodes))]
                         for number, nodes in (places[row] for row in range(len(prefixes)))])
    return Forest(tokens.to(device), positions.to(device), additive(sees).to(device), path.to(device),
                  lengths.to(device))


def unshared(tokens: Tensor, lengths: Tensor) -> Forest:
    """Rows as a forest in which nothing is shared: each row is a chunk of its own.

    Args:
        tokens: (rows, T), beyond a row's end whatever it is filled up with.
        lengths: (rows,) how many tokens of each row matter.
    """
    tokens = tokens[:, :int(lengths.max())]
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    first = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * len(positions)  # (rows, 1)
    sees = positions <= positions.unsqueeze(1)                                             # (T, T)
    return Forest(tokens, positions.expand_as(tokens), additive(sees.unsqueeze(0)),
                  first + positions.minimum(lengths.unsqueeze(1) - 1), lengths)


def additive(sees: Tensor) -> Tensor:
    """(chunks, N, N) of truth values as an attention mask (chunks, 1, N, N)."""
    return torch.zeros(sees.shape).to(sees.device).masked_fill(~sees, float("-inf")).unsqueeze(1)

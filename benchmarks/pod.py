"""``python -m benchmarks pod``: value and gradients of ``linear_cross_entropy`` from one chip to a pod, by formulas.

A mesh splits rows over ``data`` and ``fsdp``, the vocabulary over ``model``, the features of the head over ``fsdp``: a chip
has r = n / (data fsdp) of n rows and c = v / model of v classes. Arrays are bfloat16, b = 2 bytes. Of each chip:

- products: 6 r d c operations, over its peak;
- main memory: what ``crossent_jax.explain`` says that chunks of r rows and c classes read and write, over its bandwidth;
- wire: what rings send (``collectives.py``), over all links of a chip in one direction. Over k chips it is (k-1)/k of
  3 numbers of 8 bytes a row, and r d (4 + b) for the gradient of hidden states, over ``model``; d c 2 b for the head
  gathered and its gradient scattered, over ``fsdp``; d c (4 + b) for the sum of its gradient, over ``data``;
- held: arguments and gradients, 2 b (r d + d c / fsdp); the gathered head, b d c; and the larger of two. While chunks run: a
  chunk and, if there are several, float32 gradients, 4 d c and (where the vocabulary is split) 4 r d. Then, as programs
  compiled for a v5e do, three float32 copies of the largest gradient that is summed over chips; of one that is scattered and
  not summed, two and one in bfloat16.

In this model a step takes between the longest of the three times and their sum. Nothing is measured.
"""

from argparse import Namespace
from typing import NamedTuple

from rich.table import Table

from crossent_jax._linear.cuts import Cut, Limits, Sizes, cost, cut_rows

from . import table
from .chips import RATES
from .records import Bad
from .shapes import Shape

ITEM = 2


class Chip(NamedTuple):
    """A chip as its vendor documents it (https://cloud.google.com/tpu/docs, pages v5e, v5p, v6e): operations a second in
    bfloat16, bytes a second that its links send, half of the documented bidirectional bandwidth, and chips of the largest
    slice. Its memory's bandwidth is in ``chips.RATES``."""

    operations: float
    links: float
    largest: int


CHIPS = {"v5e": Chip(197e12, 200e9, 256), "v5p": Chip(459e12, 600e9, 6144), "v6e": Chip(918e12, 400e9, 256)}
COUNTS = (1, 8, 64, 256, 1024, 4096)


class Mesh(NamedTuple):
    """Devices along each axis."""

    data: int = 1
    fsdp: int = 1
    model: int = 1


def meshes(chips: int, model: int) -> dict[str, Mesh]:
    """The layouts of the table; those that split two ways give ``model`` chips to the vocabulary."""
    inner = min(model, chips)
    return {
        "batch": Mesh(data=chips),
        "vocabulary": Mesh(model=chips),
        "both": Mesh(data=chips // inner, model=inner),
        "FSDP": Mesh(fsdp=chips),
        "FSDP and vocabulary": Mesh(fsdp=chips // inner, model=inner),
    }


class Part(NamedTuple):
    """What one chip has: rows, features, classes."""

    rows: int
    features: int
    classes: int

    @property
    def sizes(self) -> Sizes:
        return Sizes(*self, product_bytes=ITEM, unwritten=True)

    @property
    def cut(self) -> Cut:
        return cut_rows((self.rows,), self.sizes, Limits(), on_cpu=False)


def part(shape: Shape, mesh: Mesh) -> Part:
    return Part(shape.n // (mesh.data * mesh.fsdp), shape.d, shape.v // mesh.model)


def formula_of_sent_bytes(shape: Shape, mesh: Mesh, item: int = ITEM) -> float:
    """By a chip, as rings do it."""
    rows, d, classes = part(shape, mesh)
    over_model = 3 * 8 * rows + (4 + item) * rows * d
    over_fsdp = 2 * item * d * classes
    over_data = (4 + item) * d * classes
    return sum(each * (k - 1) / k for each, k in ((over_model, mesh.model), (over_fsdp, mesh.fsdp), (over_data, mesh.data)))


def held_bytes(shape: Shape, mesh: Mesh) -> float:
    """By a chip."""
    mine = part(shape, mesh)
    rows, d, classes = mine
    arguments = ITEM * (rows * d + d * classes / mesh.fsdp)
    gathered = ITEM * d * classes if mesh.fsdp > 1 else 0
    alone = mine.cut.chunks == 1  # whose exponentials a v5e holds once
    running, summing = rows * mine.sizes.kept if alone else cost(mine.sizes, mine.cut).memory, 0
    if not alone:
        of_hidden = 4 * rows * d if mesh.model > 1 else 0
        of_head = 12 if mesh.data > 1 else 8 + ITEM if mesh.fsdp > 1 else 0
        running, summing = running + of_hidden, max(3 * of_hidden, of_head * d * classes)
    return 2 * arguments + gathered + max(running, summing)


def figures(shape: Shape, mesh: Mesh, chip: str) -> dict[str, str]:
    """A column of the table."""
    known, mine = CHIPS[chip], part(shape, mesh)
    sent, (bandwidth, _) = formula_of_sent_bytes(shape, mesh), RATES[chip]
    return {
        "rows of a product": f"{mine.cut.rows:,}",
        "products, ms": f"{6e3 * mine.rows * mine.features * mine.classes / known.operations:,.1f}",
        "main memory, ms": f"{1e3 * cost(mine.sizes, mine.cut).traffic / bandwidth:,.1f}",
        "wire, MB": f"{sent / 1e6:,.0f}",
        "wire, ms": f"{1e3 * sent / known.links:,.1f}",
        "held, GiB": f"{held_bytes(shape, mesh) / 2**30:,.2f}",
    }


def drawn(shape: Shape, chip: str, model: int) -> Table:
    """Empty where a mesh does not divide rows, features or vocabulary, or has not all chips."""
    counts = [count for count in COUNTS if count <= CHIPS[chip].largest]
    found, divided = Table("split, of each chip", show_edge=False, pad_edge=False), False
    for count in counts:
        found.add_column(f"{count} chip{'s' * (count > 1)}", justify="right")
    for layout in meshes(1, model):
        split = {count: meshes(count, model)[layout] for count in counts}
        columns = [figures(shape, mesh, chip) if fits(shape, mesh, count) else {} for count, mesh in split.items()]
        found.add_row(layout, *("x".join(map(str, mesh)) for mesh in split.values()))
        for name in max(columns, key=len):
            found.add_row(f"  {name}", *(column.get(name, "") for column in columns))
        divided |= any(columns[1:])
    if not divided:
        raise Bad(f"no mesh of several chips divides {shape}: change --rows, --features, --vocabulary or --model ({model})")
    return found


def fits(shape: Shape, mesh: Mesh, chips: int) -> bool:
    """Whether the mesh has all chips and divides every array."""
    rows = mesh.data * mesh.fsdp
    return rows * mesh.model == chips and not (shape.n % rows or shape.v % mesh.model or shape.d % mesh.fsdp)


def main(options: Namespace) -> int:
    console, shape = table.console(), Shape(options.rows, options.vocabulary, options.features)
    drawing = drawn(shape, options.chip, options.model)
    console.print(f"{options.chip}, {shape}, bfloat16, value and gradients. Predicted by a model: nothing ran.\n")
    console.print(drawing)
    return 0

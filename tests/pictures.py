"""What is wrong with a figure as it is drawn: texts that meet, texts that the edge cuts off, axes without a label."""

import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend


def axes_of(figure: Figure) -> list:
    """Those that are seen, inset ones too."""
    return [axes for outer in figure.axes for axes in (outer, *outer.child_axes) if axes.get_visible()]


def texts_of(figure: Figure) -> list:
    """Titles, labels, notes, and the labels of the ticks within the limits: all but the legends' own."""
    found = list(figure.texts)
    for axes in axes_of(figure):
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def legends_of(figure: Figure) -> list[Legend]:
    return figure.findobj(Legend)


def is_labelled(axes, name: str) -> bool:
    """By itself or by another that shares the axis."""
    shared = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
    return any(getattr(one, f"get_{name}label")() for one in shared)


def faults(figure: Figure) -> list[str]:
    """Of a figure that this draws; none for a good one."""
    FigureCanvasAgg(figure).draw()
    boxes = [(repr(text.get_text()), text.get_window_extent()) for text in texts_of(figure)]
    boxes += [("the legend", legend.get_window_extent()) for legend in legends_of(figure)]
    found = [
        f"the {axes} have no label of {name}" for axes in axes_of(figure) for name in "xy" if not is_labelled(axes, name)
    ]
    for (one, box), (other, its) in itertools.combinations(boxes, 2):
        overlap = np.minimum(box.max, its.max) - np.maximum(box.min, its.min)
        found += [f"{one} meets {other}"] * bool(np.all(overlap > 1))
    for one, box in boxes:
        cut = np.any(box.min < figure.bbox.min - 1) or np.any(box.max > figure.bbox.max + 1)
        found += [f"{one} is cut off"] * bool(cut)
    return found

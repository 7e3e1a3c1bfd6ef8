"""What tests ask of figures: whether all of it is inside, whether texts are apart."""

import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer


def inside(figure) -> bool:
    """Whether everything that is drawn, text above all, lies within the figure, and no pyplot figure was opened for it."""
    FigureCanvasAgg(figure).draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert not plt.get_fignums()
    return min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.03


def apart(labels) -> bool:
    """Whether no two of these texts overlap."""
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def error_bars(ax) -> list[ErrorbarContainer]:
    return [one for one in ax.containers if isinstance(one, ErrorbarContainer)]


def written(texts) -> list[str]:
    return [text.get_text() for text in texts]

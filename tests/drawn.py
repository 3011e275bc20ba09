"""What a figure of tokens shows, read from its artists."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex


def tokens(figure):
    """The text of each token and the colour below it, by its column and line."""
    page = figure.axes[0]
    boxes = {
        (box.get_x(), round(box.get_y() + box.get_height() / 2, 6)): box
        for box in page.patches
    }
    found = {text.get_position(): text.get_text() for text in page.texts}
    return {
        place: (found[place], to_hex(box.get_facecolor())) for place, box in boxes.items()
    }


def others(figure):
    """The texts that are no tokens, by their column and line."""
    found = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    return {place: found[place] for place in found.keys() - tokens(figure).keys()}


def is_whole(figure):
    """Whether nothing that is drawn leaves the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    box = figure.get_tightbbox(renderer)
    width, height = figure.get_size_inches()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height

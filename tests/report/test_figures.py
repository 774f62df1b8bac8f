import matplotlib.pyplot as plt

from robustmed.report import figures


def test_a_legend_of_long_names_stays_within_the_figure():
  figure, axes = plt.subplots(figsize=(6.4, 4.4), layout='constrained')
  lines = [axes.plot([0, 1], label=f'baseline-beta-finetune {number}')[0] for number in range(6)]
  figures._legend(figure, lines)
  (legend,) = figure.legends
  figure.draw_without_rendering()
  box = legend.get_window_extent()
  assert box.x0 >= 0 and box.x1 <= figure.bbox.width
  plt.close(figure)

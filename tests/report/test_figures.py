from robustmed.report import figures


def test_a_legend_of_long_names_stays_within_the_figure():
  figure = figures.blank(6.4, 4.4)
  axes = figure.subplots()
  lines = [axes.plot([0, 1], label=f'baseline-beta-finetune {number}')[0] for number in range(6)]
  figures.legend(figure, lines)
  (legend,) = figure.legends
  figure.draw_without_rendering()
  box = legend.get_window_extent()
  assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_a_legend_names_a_line_of_several_panels_once():
  figure = figures.blank(6.4, 4.4)
  for axes in figure.subplots(1, 2):
    axes.plot([0, 1], label='std')
  axes.plot([1, 0], label='adv')
  figures.legend(figure)
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ['std', 'adv']


def test_many_lines_look_different():
  looks = [figures.look(position) for position in range(21)]
  assert len({(colour, style) for colour, _, style in looks}) == 21
  assert len({(colour, marker) for colour, marker, _ in looks}) == 21

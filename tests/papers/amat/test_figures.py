"""Figures of adaptive margins: read off the axes, and nothing cut off at the border."""

import io

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from robustmed.papers.amat import figures as amat_figures
from robustmed.report import figures

ATTACKS = {
  'pgd': 'PGD-100, last iterate',
  'pgd_best': 'PGD-100, best iterate',
  'apgd': 'APGD (no step size)',
  'transfer': 'transfer from std',
}


@pytest.fixture
def axes_of(monkeypatch):
  monkeypatch.setattr(figures, 'png', lambda figure: figure.axes)


def bars():
  lines = [(arm, attack, 0.1 * k) for arm in ('std', 'amat') for k, attack in enumerate(ATTACKS)]
  table = pd.DataFrame(lines, columns=['arm', 'attack', 'mean'])
  return figures.bars(table, attacks=ATTACKS, metric='DICE', level=6.0)


def log():
  columns = {'step': [20, 40], 'mean': [2.5, 3.75], 'from_2.5': [8, 4], 'from_5': [0, 4]}
  return pd.DataFrame({**columns, 'from_7.5': [0, 0], 'min': [2.5, 2.5], 'max': [2.5, 5.0]})


def test_bars_are_the_means(axes_of):
  (axes,) = bars()
  heights = [[bar.get_height() for bar in group] for group in axes.containers]
  np.testing.assert_allclose(heights, [[0.1 * k] * 2 for k in range(4)])
  assert [text.get_text() for text in axes.get_xticklabels()] == ['std', 'amat']


def test_margins_are_shares_of_the_drawn_examples(axes_of):
  axes, bar = amat_figures.margins(log())
  (mesh,) = axes.collections
  shown = np.asarray(mesh.get_array()).reshape(-1, 2)
  np.testing.assert_allclose(shown[:2], [[1.0, 0.5], [0.0, 0.5]])
  np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [2.5, 3.75])
  assert bar.get_ylabel() == 'share of the drawn examples' and axes.get_yscale() == 'linear'


@pytest.mark.parametrize(('smallest', 'scale'), [(0.2, 'linear'), (0.1, 'log'), (0.0, 'log')])
def test_margins_that_span_decades_have_a_logarithmic_axis(axes_of, smallest, scale):
  columns = {'step': [20, 40], 'mean': [2.5, 3.75], 'from_0': [0, 4], 'from_2.5': [8, 4]}
  table = pd.DataFrame({**columns, 'min': [smallest or 0.1, smallest], 'max': [2.5, 5.0]})
  axes, _ = amat_figures.margins(table)
  (mesh,) = axes.collections
  sides = np.asarray(mesh.get_coordinates())[:, 0, 1]
  assert axes.get_yscale() == scale
  np.testing.assert_allclose(
    sides, [0.0 if scale == 'linear' else 0.1, 1.25, 3.75]
  )  # 2.5 in the middle
  np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(-1, 2), [[0, 0.5], [1, 0.5]])


def test_losses_have_their_threshold_and_no_curve_where_all_are_equal(axes_of):
  samples = [
    amat_figures.Sample('bce', np.linspace(0, 1, 50), 0.4),
    amat_figures.Sample('dice', np.full(50, 0.5), 0.6),
  ]
  first, second = amat_figures.clean_values(samples, what='losses')
  assert len(first.get_lines()) == 2 and len(second.get_lines()) == 1
  np.testing.assert_allclose(first.get_lines()[-1].get_xdata(), 0.4)
  assert first.get_title() == 'bce: threshold 0.4 (dashed)'
  assert first.get_xlabel() == 'clean losses V of STD'
  *four, fifth, sixth = amat_figures.clean_values(samples[:1] * 4, what='Dice')
  assert all(axes.get_lines() for axes in four) and not fifth.axison and not sixth.axison


def test_nothing_to_draw():
  assert amat_figures.margins(log().iloc[:0]) is None
  empty = pd.DataFrame({'arm': [], 'attack': [], 'mean': []})
  assert figures.bars(empty, attacks=ATTACKS, metric='DICE', level=6.0) is None


def test_nothing_reaches_the_border_of_a_picture():
  sample = amat_figures.Sample('total', np.random.default_rng(0).normal(size=50), 0.0)
  for made in (bars(), amat_figures.clean_values([sample] * 4, what='losses')):
    pixels = matplotlib.image.imread(io.BytesIO(made))[..., :3]
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    assert all(edge.min() == 1 for edge in edges)

"""The disk-shape paper's figures: what is drawn where, read off the axes before they become PNG."""

import io

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from robustmed.papers.spine import figures as spine_figures
from robustmed.report import figures

LEVELS = (0.0, 0.01, 0.2)


@pytest.fixture
def axes_of(monkeypatch):
  monkeypatch.setattr(figures, 'png', lambda figure: figure.axes)


def _summary(arms):
  lines = []
  for arm in arms:
    for metric, attack in spine_figures.PANELS:
      for eps in LEVELS:
        shown = attack if eps else 'none'
        lines.append((arm, shown, eps, metric, 0.9 - eps, 0.1, 5, 0.8, 1.0))
  columns = ['arm', 'attack', 'eps', 'metric', 'mean', 'std', 'n', 'low', 'high']
  return pd.DataFrame(lines, columns=columns)


def _circle():
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False)
  return np.stack([np.cos(angle), np.sin(angle)], -1) * 5 + 8


def _stored(count, **columns):
  blank = np.zeros((count, 16, 16, 1))
  disk = np.zeros((count, 16, 16, 1))
  disk[:, 4:12, 4:12] = 1
  return {
    'image': blank + 0.5,
    'start': blank,
    'attacked': blank + 0.1 * disk,
    'mask_true': disk,
    'contour': np.stack([_circle()] * count),
    'contour_true': np.stack([_circle() + 1] * count),
    'contour_wanted': np.stack([_circle()] * count),
    'segmentation': disk - 0.5,
    **{name: np.array(values) for name, values in columns.items()},
  }


def test_curves_as_printed(axes_of):
  summary = _summary(['P03_std', 'P03_rand', 'P10_std', 'P10_rand', 'P10_adv_rs'])
  panels = spine_figures.robustness(summary, variant='rand', side=64, true_scale=False)
  assert [axes.get_title() for axes in panels] == ['Error_reg', 'DICE_reg', 'DICE_seg']
  assert panels[0].get_ylim() == (0, 13) and panels[1].get_ylim() == (0.5, 1)
  for axes in panels:
    assert axes.get_xticks().tolist() == [0, 1, 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ['0', '0.01', '0.2']
    lines = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
    blue, red = spine_figures.COLOURS['P03'], spine_figures.COLOURS['P10']
    assert lines == [(blue, '--'), (blue, '-'), (red, '--'), (red, '-')]
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [0.9, 0.89, 0.7])


def test_curves_true_to_scale(axes_of):
  summary = _summary(['P10_std', 'P10_adv_rs'])
  panels = spine_figures.robustness(summary, variant='adv_rs', side=64, true_scale=True)
  for axes in panels:
    assert axes.get_lines()[1].get_xdata().tolist() == list(LEVELS)
    assert axes.get_ylim()[0] == 0
  assert spine_figures.robustness(summary, variant='rand', side=64, true_scale=True) is None


def test_strips_have_models_as_rows_and_levels_as_columns(axes_of):
  arms, levels = ['a', 'a', 'b', 'b'], [0.0, 0.1, 0.0, 0.1]
  stored = _stored(4, arm=arms, eps=levels, attack=['pgd_reg'] * 4)
  panels = spine_figures.strip(stored, attack='pgd_reg')
  assert [axes.get_ylabel() for axes in panels] == ['a', '', 'b', '']
  assert [axes.get_title() for axes in panels] == ['0', '0.1', '', '']
  truth, output = panels[3].get_lines()
  assert (truth.get_color(), output.get_color()) == (spine_figures.TRUE, spine_figures.OUTPUT)
  assert len(truth.get_xdata()) == 177  # closed
  assert spine_figures.strip(stored, attack='pgd_seg') is None


def test_segmentations_are_drawn_as_edges(axes_of):
  stored = _stored(1, arm=['a'], eps=[0.1], attack=['pgd_seg'])
  (panel,) = spine_figures.strip(stored, attack='pgd_seg')
  assert len(panel.collections) == 2
  stored['segmentation'] -= 5  # an empty output has no edge
  (panel,) = spine_figures.strip(stored, attack='pgd_seg')
  assert len(panel.collections) == 1


def test_agreement_says_what_lies_outside_its_axis(axes_of):
  rows = pd.DataFrame({'agree_reg': [0.96, 0.99, 0.2], 'agree_seg': [1.0, 0.97, 0.98]})
  contour, mask = spine_figures.agreement(rows, arm='P10_std')
  assert contour.get_title() == 'contour: 1 of 3 below 0.95'
  assert mask.get_title() == 'segmentation: 0 of 3 below 0.95'
  assert len(mask.patches) == 20
  assert sum(patch.get_height() for patch in contour.patches) == 2
  assert sum(patch.get_height() for patch in mask.patches) == 3  # a Dice of 1 included


@pytest.mark.parametrize('largest, top', [(0.02, 0.03), (0.4, 0.4)])
def test_reconstruction_errors_all_lie_on_the_axis(axes_of, largest, top):
  rows = pd.DataFrame(
    {'arm': 'a', 'attack': ['ind', 'ind', 'rec', 'other'], 'score': [0.01, 0.02, largest, 9.0]}
  )
  above, below = spine_figures.reconstruction(rows, arms=['a'], attack='rec')
  assert sum(patch.get_height() for patch in above.patches) == 2
  assert sum(patch.get_height() for patch in below.patches) == 1
  edges = [patch.get_x() + patch.get_width() for patch in below.patches]
  assert len(edges) == 50 and max(edges) == pytest.approx(top)


def test_foreign_images(axes_of):
  stored = _stored(2, arm=['a', 'b'], attack=['rec', 'ood'])
  panels = spine_figures.foreign(stored, attacks=('rec',))
  assert len(panels) == 4 and panels[0].get_ylabel() == 'a\nrec'
  change = panels[2].get_images()[0]
  np.testing.assert_allclose(change.get_array(), np.squeeze(stored['attacked'][0]))
  assert change.get_clim() == pytest.approx((-0.1, 0.1))
  assert spine_figures.foreign(stored, attacks=('nothing',)) is None


def test_pictures_are_png_and_the_same_every_time():
  stored = {name: value[0] for name, value in _stored(1).items()}
  virtual = {
    'image': stored['image'],
    'contour': stored['contour'],
    'virtual_contour': stored['contour_true'],
    'virtual_image': stored['attacked'],
  }
  draw = lambda: (
    spine_figures.virtual(virtual),
    spine_figures.pair(stored, stored, titles=('one', 'two')),
    spine_figures.rocs({'a': ([0, 0, 1], [0, 1, 1])}),
  )
  first, second = draw(), draw()
  assert first == second
  assert all(png.startswith(b'\x89PNG') and len(png) > 2000 for png in first)


def test_a_title_of_two_lines_is_not_cut_off():
  stored = {name: value[0] for name, value in _stored(1).items()}
  made = spine_figures.pair(stored, stored, titles=('one', 'two\nlines'))
  pixels = matplotlib.image.imread(io.BytesIO(made))[..., :3]
  assert pixels[:2].min() == 1 and pixels[-2:].min() == 1

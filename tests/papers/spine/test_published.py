import pytest

from robustmed.papers.spine import published
from robustmed.report import spec


def test_spine_tables_are_the_papers():
  paper = published.tables()
  assert list(paper.columns) == list(spec.PAPER)
  assert len(paper) == 3 * 15 * 7 and paper['arm'].nunique() == 15
  cell = paper.set_index(['arm', 'attack', 'eps', 'metric'])['mean']
  assert cell['P10_std', 'none', 0.0, 'Error_reg'] == 1.6886
  assert cell['P10_adv_rs', 'pgd_seg', 0.07, 'DICE_seg'] == 0.7827
  assert cell['P05_rand', 'pgd_reg', 0.03, 'DICE_reg'] == 0.5943
  assert cell['P03_adv_s', 'pgd_reg', 0.2, 'Error_reg'] == 9.6913
  assert not paper['mean'].isna().any()
  assert paper[paper['metric'] != 'Error_reg']['mean'].between(0, 1).all()


def test_more_noise_is_never_better_for_the_masks_of_the_paper():
  paper = published.tables()
  for arm in paper['arm'].unique():
    curve = paper[(paper['arm'] == arm) & (paper['metric'] == 'DICE_seg')].sort_values('eps')
    assert curve['mean'].is_monotonic_decreasing, arm


def test_attacks_can_have_other_names():
  paper = published.tables({'pgd_seg': 'other'})
  assert set(paper['attack']) == {'none', 'pgd_reg', 'other'}
  with pytest.raises(KeyError):
    paper.set_index('attack').loc['pgd_seg']

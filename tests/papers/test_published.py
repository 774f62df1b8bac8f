import pytest

from robustmed.papers import published
from robustmed.report import spec


def test_spine_tables_are_the_papers():
  paper = published.spine()
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
  paper = published.spine()
  for arm in paper['arm'].unique():
    curve = paper[(paper['arm'] == arm) & (paper['metric'] == 'DICE_seg')].sort_values('eps')
    assert curve['mean'].is_monotonic_decreasing, arm


def test_attacks_can_have_other_names():
  paper = published.spine({'pgd_seg': 'other'})
  assert set(paper['attack']) == {'none', 'pgd_reg', 'other'}
  with pytest.raises(KeyError):
    paper.set_index('attack').loc['pgd_seg']


def test_nodule_tables_are_the_papers():
  froc = published.nodule_froc().set_index(['arm', 'benchmark'])
  assert len(froc) == 20 and set(published.nodule_arms()) == {arm for arm, _ in froc.index}
  assert froc.loc[('syn', 'nlst'), ['cpm', 'low', 'high', '0.125', '8']].tolist() == [
    87.89, 81.20, 93.93, 74.44, 94.77,
  ]  # fmt: skip
  rates = [name for name in froc.columns if name not in ('cpm', 'low', 'high')]
  away = (froc[rates].mean(axis=1) - froc['cpm']).abs()
  assert away.idxmax() == ('deeplung', 'nlst') and away.drop(away.idxmax()).max() < 0.6
  stress = {number: published.nodule_stress(number) for number in (4, 5, 6)}
  assert {number: len(table) for number, table in stress.items()} == {4: 4, 5: 42, 6: 24}
  cell = stress[6].set_index(['arm', 'column'])
  assert cell.loc[('beta_finetune', 'noise_pgd')].tolist() == [0.87, 0.17]
  assert stress[5].set_index(['arm', 'column']).loc[('poisson', 'poisson 5'), 'mean'] == 0.80
  networks = published.nodule_networks().set_index('network')
  assert networks.loc['FPR'].tolist() == [455.98, 17.24, 64]
  counts = published.nodule_counts().set_index('quantity')
  assert counts.loc['total_nodules_ge_6mm'].tolist() == [150, 131]

from robustmed.papers.nodules import published


def test_nodule_tables_are_the_papers():
  froc = published.froc().set_index(['arm', 'benchmark'])
  assert len(froc) == 20 and set(published.arms()) == {arm for arm, _ in froc.index}
  assert froc.loc[('syn', 'nlst'), ['cpm', 'low', 'high', '0.125', '8']].tolist() == [
    87.89, 81.20, 93.93, 74.44, 94.77,
  ]  # fmt: skip
  rates = [name for name in froc.columns if name not in ('cpm', 'low', 'high')]
  away = (froc[rates].mean(axis=1) - froc['cpm']).abs()
  assert away.idxmax() == ('deeplung', 'nlst') and away.drop(away.idxmax()).max() < 0.6
  stress = {number: published.stress(number) for number in (4, 5, 6)}
  assert {number: len(table) for number, table in stress.items()} == {4: 4, 5: 42, 6: 24}
  cell = stress[6].set_index(['arm', 'column'])
  assert cell.loc[('beta_finetune', 'noise_pgd')].tolist() == [0.87, 0.17]
  assert stress[5].set_index(['arm', 'column']).loc[('poisson', 'poisson 5'), 'mean'] == 0.80
  networks = published.networks().set_index('network')
  assert networks.loc['FPR'].tolist() == [455.98, 17.24, 64]
  counts = published.counts().set_index('quantity')
  assert counts.loc['total_nodules_ge_6mm'].tolist() == [150, 131]

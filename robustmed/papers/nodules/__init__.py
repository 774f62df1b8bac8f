"""Liu et al. 2020, "No Surprises: training robust lung nodule detection for low-dose CT scans by
augmenting with adversarial attacks". Configuration: configs/nodules.py.

  experiment.py  build(config)
  arms.py        candidate networks, synthesiser, classifiers and what each learns from
  networks.py, synthesiser.py   the auto-encoder and critic that make nodules of codes
  recipes.py, pools.py, stored_pools.py   how patches are searched, made, stored and drawn
  candidates.py, scans.py   candidates and submissions of whole scans (Table 3)
  evaluation.py  what is measured beside the grid: disturbed patches (Tables 4 to 6), whole scans
  scan_kinds.py  claims that are decided over whole scans
  claims.py, tables.py, figures.py, report.py   statements as tests, tables, the page
  published/     the printed Tables 1 to 6

Readings of unclear passages: report.notes, and the comments of configs/nodules.py.
"""

"""What the report on nodules says of how things were read."""


def notes(config) -> tuple[str, ...]:
  """One paragraph for each reading of the paper."""
  listed = config.data.candidates == 'luna_v2'
  patch, codes = config.pools.patch_search, config.pools.code_search
  found = (
    "Candidates are those of the data set's own list, LUNA16's track for false-positive reduction."
    if listed
    else 'Candidates are those of '
    + ', '.join(
      [
        'a blob network',
        *(['its copy for ground glass'] if config.candidates.ground_glass else []),
        *(['a region proposal network'] if config.candidates.boxes else []),
      ]
    )
    + ', at most 100 a scan.'
  )
  return (
    f'{found} Negatives of training come from the list of candidates of the data set '
    f'({config.data.negatives_from}) and from random places of the lungs.',
    f'A mark hits within the radius of a nodule, nodules below {config.data.min_diameter:g} mm and '
    'irrelevant findings count neither way, and false positives are per scan of all scans. The CPM '
    'and the sensitivities are both of the raw curve; intervals and differences are from '
    f'{config.evaluate.resamples} draws of whole scans, the same ones for all networks.',
    "The paper's Table 3: the CPM of DeepLung on NLST, 75.71, is its sensitivity at 8 false "
    'positives per scan; its seven sensitivities average 57.72. In other rows CPM and the average '
    'differ by up to 0.5 points (in-house baseline-beta-finetune 88.90 and 89.30), more than some '
    'of the differences claimed. All intervals of the paper overlap: no ranking below about 3 '
    'points is supported by them.',
    'Circularity: patches of training and those of Tables 4 to 6 are searched on one and the same '
    f'network, {config.pools.victim}, so these tables show transfer. Columns "its own", and the '
    'grid, were searched on the network that meets them; pools of training and of the stress tests '
    'have other scans and other random numbers.',
    f'Searches: L-infinity with the sign of the gradient, codes eps {codes.eps:g} and step '
    f'{codes.step_size:g}, patches eps {patch.eps:g} and step {patch.step_size:g}, '
    f'{patch.num_steps} steps from a random start; patches are kept within [0, 1]. The paper gives '
    'eps, step and number for the codes alone, and neither norm nor sign.',
    'Table 4 of the paper has no method in its first line; the text says baseline-beta-finetune. '
    'Its text has 0.87 for beta+syn under searched nodules, its table 0.88.',
    'Poisson noise is Poisson(L x) / L. The paper says "[0, 50] and [0, 1]" and then x50 and x5; '
    'L = 1 would hurt far more than its 0.86 to 0.78. Training draws L from '
    f'{tuple(config.pools.poisson)}, a strength that the paper does not give.',
    'Uniform noise of magnitude m is x + U(-m/2, m/2), the mildest reading, unclipped; '
    '"uniform_wide" is U(-m, m).',
    'The threshold of the fusion is '
    f'{config.synthesiser.threshold:g} of the window [-1200, 600] HU; synthetic nodules of '
    f'{config.synthesiser.smallest:g} mm or more are kept. The size of the code and all layers are '
    'ours; the paper gives none. The divergence is summed over the code, the error a mean.',
    'The beta loss is the expected sum of squares with a divergence of the evidence for the wrong '
    f'class, which rises over the first {config.model.anneal:g} of the training. Uncertainty is '
    '2 / S.',
    'Shares of training draws: positives and negatives alike; '
    'a variant that has not one of the kinds gives its share to the real ones.',
  )

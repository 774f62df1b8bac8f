"""The planner against the published configurations of nnU-Net v1 and its own limits."""

import numpy as np
import pytest

from robustmed import errors
from robustmed.models import nnunet_planner as planner

HEART = planner.Fingerprint((115, 320, 232), (1.37, 1.25, 1.25), 1, 2, 20)
HIPPOCAMPUS = planner.Fingerprint((36, 50, 35), (1.0, 1.0, 1.0), 1, 3, 260)
PROSTATE = planner.Fingerprint((20, 320, 319), (3.6, 0.62, 0.62), 2, 3, 32)
DEEP = (32, 64, 128, 256, 480, 480, 480)


@pytest.mark.parametrize(
  ('fingerprint', 'patch', 'pools', 'batch', 'uncapped', 'features', 'loader'),
  [
    (HEART, (320, 256), (6, 6), 40, 40, DEEP, (376, 376)),
    (HIPPOCAMPUS, (56, 40), (3, 3), 366, 1608, (32, 64, 128, 256), (65, 65)),
    (PROSTATE, (320, 320), (6, 6), 32, 32, DEEP, (376, 376)),
  ],
  ids=['heart', 'hippocampus', 'prostate'],
)
def test_the_decathlon_s_plans(fingerprint, patch, pools, batch, uncapped, features, loader):
  plan = planner.plan(fingerprint)
  assert plan.patch == patch and plan.pools == pools and plan.features == features
  assert (plan.batch_size, plan.uncapped_batch_size) == (batch, uncapped)
  assert plan.loader_patch == loader and plan.max_angle == 180
  assert plan.strides == ((2, 2),) * pools[0]


def test_poolings_of_the_median_alone():
  plan = planner.plan(HEART, recount=False)
  assert plan.patch == (320, 256) and plan.batch_size == 40 and plan.pools == (6, 5)
  assert plan.strides[-1] == (2, 1) and plan.features == DEEP
  for other in (HIPPOCAMPUS, PROSTATE):
    assert planner.plan(other, recount=False) == planner.plan(other)


def test_large_slices_are_cut_until_two_fit():
  plan = planner.plan(planner.Fingerprint((40, 3000, 1500), (2.0, 0.5, 0.5), 1, 2, 50))
  assert plan.batch_size == plan.uncapped_batch_size == 2
  assert plan.patch[0] < 3000
  whole = [2**n for n in plan.pools]
  assert all(n % m == 0 for n, m in zip(plan.patch, whole))
  # The longer axis gives way first, so the aspect of the slices stays to a grain.
  assert 1.6 < plan.patch[0] / plan.patch[1] < 2.4
  assert plan.max_angle == 15
  turned = np.array(plan.loader_patch) * planner.CONTEXT
  assert (turned >= np.array(plan.patch) - 1).all()


def test_poolings_start_with_the_finer_axis():
  plan = planner.plan(planner.Fingerprint((30, 64, 64), (3.0, 1.0, 1.9), 1, 2, 400))
  assert plan.strides[0] == (2, 2)
  plan = planner.plan(planner.Fingerprint((30, 16, 64), (3.0, 1.0, 1.0), 1, 2, 400))
  # The last halving makes the second axis twice as coarse as the first, which has no cells left.
  assert plan.pools == (2, 3) and plan.strides[-1] == (1, 2)


def test_a_tiny_data_set_has_batches_of_one():
  assert planner.plan(planner.Fingerprint((1, 64, 64), (1.0, 1.0, 1.0), 1, 2, 1)).batch_size == 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'shape': (36, 7, 35)}, 'at least 8 pixels wide'),
    ({'cases': 0}, 'of 0 cases'),
    ({'spacing': (3.0, 0.5, 1.0)}, 'spacings 0.5 and 1 mm are a factor of 2 apart'),
    ({'spacing': (3.0, 0.0, 0.0)}, 'resample them first'),
  ],
)
def test_what_cannot_be_planned_is_said(fields, message):
  with pytest.raises(errors.UserError, match=message):
    planner.plan(HIPPOCAMPUS._replace(**fields))


def test_poolings_of_images_of_any_rank():
  strides, padded = planner.planned((20, 50, 50), spacing=(2.0, 1.0, 1.0))
  assert strides == ((1, 2, 2), (2, 2, 2), (2, 2, 2)) and padded == (20, 56, 56)
  strides, padded = planner.planned((100, 70), spacing=(1, 1), most=2)
  assert strides == ((2, 2), (2, 2)) and padded == (100, 72)
  assert planner.planned((6, 7), spacing=(1, 1)) == ((), (6, 7))

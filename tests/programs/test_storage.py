"""Workdirs in object stores, against a bucket in memory."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.process import files
from robustmed.runs import artifacts, locks, workdir
from robustmed.training import checkpoints, loop
from support import buckets

ROOT = 'gs://bucket/runs/x'


@pytest.fixture
def bucket(monkeypatch):
  return buckets.use(monkeypatch)


def test_what_users_write_as_a_path(bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert files.path_of('runs/x') == tmp_path / 'runs' / 'x'
  assert str(files.path_of(ROOT) / 'a') == f'{ROOT}/a' and files.is_remote(files.path_of(ROOT))
  assert files.path_of(files.path_of(ROOT)) == files.path_of(ROOT)
  assert not files.is_remote(files.path_of(tmp_path))
  with pytest.raises(errors.UserError, match='needs no_such_driver; install it: pip install'):
    files.path_of('s3://b/x')
  with pytest.raises(errors.UserError, match="unknown kind of storage 'ftp'"):
    files.path_of('ftp://b/x')


def test_a_file_is_there_whole_or_not_at_all(bucket):
  path = files.path_of(ROOT) / 'deep' / 'a.json'
  files.write_json(path, {'a': [1, 2]})
  assert files.read_json(path) == files.read_json(f'{ROOT}/deep/a.json') == {'a': [1, 2]}
  with pytest.raises(RuntimeError), files.replacing(path) as temporary:
    temporary.write_text('half')
    raise RuntimeError
  assert files.read_json(path) == {'a': [1, 2]}
  assert [str(found) for found in files.iter_files(files.path_of(ROOT))] == [str(path)]
  assert files.iter_files(files.path_of('gs://bucket/nothing')) == []


def test_a_bucket_that_cannot_be_written_is_one_line(bucket, monkeypatch):
  def refuse(*args, **options):
    raise PermissionError('403: no storage.objects.create')

  monkeypatch.setattr(bucket, 'open', refuse)
  with pytest.raises(errors.UserError, match=r'cannot write gs://.*403.*the bucket exists'):
    files.write_text(f'{ROOT}/a.txt', 'x')


def test_tables_and_arrays_are_read_back(bucket):
  root = files.path_of(ROOT)
  table = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})
  with files.replacing(root / 't.parquet') as temporary:
    table.to_parquet(temporary, index=False)
  with files.replacing(root / 't.csv') as temporary:
    table.to_csv(temporary, index=False)
  pd.testing.assert_frame_equal(pd.read_parquet(files.opened(root / 't.parquet')), table)
  pd.testing.assert_frame_equal(pd.read_csv(files.opened(root / 't.csv')), table)
  one = lambda arm: {'arm': np.array([arm]), 'image': np.ones((1, 2, 2))}
  for arm in 'ba':
    model = type('Model', (), {'arm': arm})
    artifacts.add_pictures(root / 'examples.npz', [model], lambda model: one(model.arm))
  with np.load(files.opened(root / 'examples.npz')) as stored:
    assert stored['arm'].tolist() == ['a', 'b']


def test_a_folder_that_others_fill(bucket, tmp_path):
  for root in (files.path_of(ROOT), tmp_path):
    with files.building_folder(root / 'worst') as place:
      (place / 'in').mkdir(parents=True)
      (place / 'in' / 'a.txt').write_text('a')
    assert (root / 'worst' / 'in' / 'a.txt').read_text() == 'a'


def test_a_folder_goes_with_all_that_is_in_it(bucket, tmp_path):
  for root in (files.path_of(ROOT), tmp_path / 'x'):
    files.write_text(root / 'old' / 'deep' / 'a', 'a')
    files.write_text(root / 'older', 'b')
    files.remove_folder(root / 'old')
    files.remove_folder(root / 'never')
    assert [path.name for path in files.iter_files(root)] == ['older']


def test_a_workdir_is_claimed_and_given_back(bucket):
  root = files.path_of(ROOT)
  assert workdir.claim(root, {'a': 1}) and not workdir.claim(root, {'a': 1})
  with pytest.raises(errors.UserError, match='a: 1 there, 2 here'):
    workdir.claim(root, {'a': 2})
  info = {'name': 'disks', 'fingerprint': 'a1', 'sizes': {}, 'groups': {}}
  workdir.claim_data(root, info)
  with pytest.raises(errors.UserError, match='are not those'):
    workdir.claim_data(root, {**info, 'fingerprint': 'b2'})
  workdir.release(root)
  assert files.iter_files(root) == []


def test_locks(bucket, monkeypatch):
  monkeypatch.setattr(locks, '_POLL', 0.01)
  root = files.path_of(ROOT)
  with locks.hold(root, ['train.std']):
    record = json.loads((root / 'locks' / 'train.std.json').read_text())
    assert record['beat'] == 0 and record['pid']
    with (
      pytest.raises(errors.UserError, match="another run is training arm 'std' in gs://bucket"),
      locks.hold(root, ['train.std']),
    ):
      pass
  assert files.iter_files(root) == []
  files.write_json(root / 'locks' / 'train.std.json', {**record, 'born': '1', 'token': 'other'})
  with locks.hold(root, ['train.std']):
    pass


def test_logs_and_curves_of_a_training(bucket):
  path = files.path_of(ROOT) / 'logs' / 'std.seed0.csv'
  with loop.Log(path, done=0, every=1) as log:
    log.write(1, {'main/loss': 2.0})
    log.save()
    log.write(2, {'main/loss': 1.0})
  assert [row['step'] for row in csv.DictReader(path.read_text().splitlines())] == ['1', '2']
  assert any('tfevents' in str(file) for file in files.iter_files(path.with_suffix('')))
  with loop.Log(path, done=1, every=1) as log:
    log.write(2, {'main/loss': 1.5})
  rows = list(csv.DictReader(path.read_text().splitlines()))
  assert [(row['step'], row['main/loss']) for row in rows] == [('1', '2.0'), ('2', '1.5')]


def test_the_card_and_the_digest_of_a_network(bucket):
  root = files.path_of(ROOT) / 'checkpoints' / 'std' / 'seed0'
  card = {'arm': 'std', 'seed': 0, 'model': {}, 'image_shape': [4, 4, 1]}
  checkpoints.write_card(root, card)
  assert checkpoints.read_card(root) == card
  empty = checkpoints.digest(root)
  files.write_text(root / 'variables' / 'd' / 'x', 'weights')
  full = checkpoints.digest(root)
  assert full != empty and full == checkpoints.digest(str(root))

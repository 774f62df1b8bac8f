"""A bucket in memory that gs:// paths lead to: no folders, no renames, whole objects alone."""

from fsspec.implementations import memory

from robustmed.process import files


class Bucket(memory.MemoryFileSystem):
  """As gcsfs: paths come back without scheme and without a leading slash."""

  protocol = ('gs', 'gcs')
  cachable = False

  def __init__(self):
    super().__init__()
    self.store = {}
    self.pseudo_dirs = ['']

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + str(path).partition('://')[2].strip('/') if '://' in str(path) else str(path)

  def glob(self, path, **options):
    return [found.lstrip('/') for found in super().glob(path, **options)]

  def mv(self, *args, **options):
    raise AssertionError('an object store has no rename')

  rename = mv


def use(monkeypatch) -> Bucket:
  """Lets gs:// paths lead to a new bucket."""
  from etils.epath import backend

  bucket = Bucket()
  monkeypatch.setattr(files, '_DRIVERS', {'gs': 'fsspec', 's3': 'no_such_driver'})
  monkeypatch.setattr(backend.fsspec_backend, 'fs', lambda path: bucket)
  return bucket

"""The documentation site: the check of a built one, and the whole site."""

import importlib.util
import subprocess
import sys

import pytest

from support import runs


def _script(name):
  spec = importlib.util.spec_from_file_location(name, runs.ROOT / 'launch' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_dead_links_anchors_and_requests_to_elsewhere_are_found(tmp_path):
  (tmp_path / 'beside.png').write_bytes(b'')
  tmp_path = tmp_path / 'site'
  tmp_path.mkdir()
  (tmp_path / 'a.html').write_text(
    '<h2 id="here"></h2><a href="b/c.html#there">1</a><a href="#gone">2</a><a href="no.html">3</a>'
    '<a href="https://example.com/">4</a><img src="https://example.com/x.png">'
    '<img src="../beside.png">'
  )
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'c.html').write_text('<p id="there"><a href="../a.html#here">1</a></p>')
  (tmp_path / 'x.css').write_text('@import "https://example.com/y.css"')
  assert _script('docs_check').problems(tmp_path) == [
    'a.html: loads https://example.com/x.png',
    'a.html: no anchor #gone',
    'a.html: no no.html',
    'a.html: no ../beside.png',
    'x.css: @import "http',
  ]


@pytest.mark.long
def test_the_whole_site_is_built_without_a_warning_or_a_dead_link(tmp_path):
  pytest.importorskip('mkdocs', reason='docs/requirements.txt is not installed here')
  pytest.importorskip('mkdocstrings', reason='docs/requirements.txt is not installed here')
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', tmp_path / 's'],
    cwd=runs.ROOT,
    env=runs.environment(NO_MKDOCS_2_WARNING='1'),
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert _script('docs_check').problems(tmp_path / 's') == []
  page = (tmp_path / 's' / 'notebooks' / 'attack.html').read_text('utf-8')
  assert 'minimal_eps' in page and (tmp_path / 's' / 'notebooks' / 'attack.ipynb').is_file()

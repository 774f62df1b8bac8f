import pytest

from robustmed import errors
from robustmed.data.files import xml


def write(folder, text):
  path = folder / 'one.xml'
  path.write_text(text)
  return path


def test_numbers_are_found_below_an_element(tmp_path):
  root = xml.read(write(tmp_path, '<a><b><c> 2.5 </c></b></a>'), kind='a list')
  assert root.tag == 'a' and xml.number(root, 'b/c', where='here') == 2.5


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('<a>', 'cannot be read as XML'),
    ('', 'cannot be read as XML'),
    ('<a>' * 100_000 + '</a>' * 100_000, 'nested deeper than 200'),
    ('<!DOCTYPE a><a/>', 'refused, it declares a document type or entities'),
    ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><a>&b;</a>', 'a list has none'),
  ],
)
def test_damaged_files_are_one_line_that_names_them(tmp_path, text, message):
  path = write(tmp_path, text)
  with pytest.raises(errors.UserError, match=message) as found:
    xml.read(path, kind='a list')
  assert str(path) in str(found.value) and '\n' not in str(found.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
  with pytest.raises(errors.UserError, match=r'gone\.xml: cannot be read'):
    xml.read(tmp_path / 'gone.xml', kind='a list')


@pytest.mark.parametrize('value', ['two', 'nan', 'inf', '', '1_000'])
def test_what_is_no_finite_number_is_a_mistake(tmp_path, value):
  root = xml.read(write(tmp_path, f'<a><b>{value}</b></a>'), kind='a list')
  with pytest.raises(errors.UserError, match=f"here: b is '{value}', not a number"):
    xml.number(root, 'b', where='here')
  with pytest.raises(errors.UserError, match='here: c is None, not a number'):
    xml.number(root, 'c', where='here')

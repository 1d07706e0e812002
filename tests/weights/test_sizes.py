"""What a weight file may take in memory."""
import zipfile

import pytest
import torch

from amdlib.errors import WeightsError
from amdlib.weights.sizes import check_size


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({'w': torch.zeros(2_000_000)}, tmp_path / 'w.pth')
    check_size(tmp_path / 'w.pth')
    with zipfile.ZipFile(tmp_path / 'w.pth') as plain, \
            zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    assert (tmp_path / 'bomb.pth').stat().st_size < 20_000
    with pytest.raises(WeightsError, match=r'bomb.pth \(\d+ bytes\) unpacks to 80\d{5} bytes: a checkpoint is not'):
        check_size(tmp_path / 'bomb.pth')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'of another program'])
def test_what_is_no_archive_is_left_to_the_reading(tmp_path, content):
    (tmp_path / 'w.pth').write_bytes(content)
    check_size(tmp_path / 'w.pth')
    check_size(tmp_path / 'nowhere.pth')

"""What the page keeps for its visitors."""

from types import SimpleNamespace

import pytest


def test_the_page_knows_so_many_visitors_at_most(tmp_path, monkeypatch):
    module = pytest.importorskip("web.visits")
    monkeypatch.setattr(module, "VISITORS", 3)
    visits = module.Visits(tmp_path)
    requests = [SimpleNamespace(session_hash=name) for name in ("a", "b", "../c", "d")]
    folders = [visits.of(request).folder for request in requests[:3]]
    assert visits.of(requests[0]).folder == folders[0]
    visits.of(requests[3])
    assert [folder.exists() for folder in folders] == [True, False, True]
    visits.of(requests[2]).last -= module.CACHE_S + 1
    visits.of(requests[0])
    assert [folder.exists() for folder in folders] == [True, False, False] and len(list(tmp_path.iterdir())) == 2

"""tools/rank_table.py on damaged tables."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import MEGABYTES, bounded, fresh, judge, mutations
from tests.test_distributed import table

RANK_TABLE = json.dumps(table(2, 2), indent=1).encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["server_list", "device", "rank_id", "device_id", "device_ip", "server_id", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@bounded
@given(content=st.one_of(mutations(RANK_TABLE), json_values.map(lambda value: json.dumps(value).encode())))
def test_rank_tables(forked, tmp_path_factory, content):
    folder = fresh(tmp_path_factory.getbasetemp() / "ranks")
    (folder / "table.json").write_bytes(content)
    answer = forked("tools/rank_table.py table.json", cwd=folder, megabytes=MEGABYTES)
    judge(answer, ["table.json"])
